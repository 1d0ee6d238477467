//go:build integration

// Package broker starts a real Apache Kafka for tests: one node or several, in KRaft mode, on loopback, with listeners
// for plain text, TLS with client certificates, and SASL over TLS. Its jars come from Maven's central repository, see
// fetch.sh. With CTLOGD_TEST_KAFKA=HOST:PORT set, tests that need no more than a plain broker use that one.
package broker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// The users that a SASL listener knows. Admin may do everything; User nothing until it is granted.
const (
	User          = "ctlogd"
	Admin         = "admin"
	Password      = "correct-horse"
	AdminPassword = "battery-staple"
)

// Options say what to start.
type Options struct {
	Nodes  int               // brokers, each a controller as well; 0 means 1
	Secure bool              // add the listeners with TLS, SASL and access control; User:ANONYMOUS, plain text, may do all
	Config map[string]string // further lines of server.properties
	NS     *lab.NS           // where it runs, on that namespace's loopback; nil: where the test does
}

// Cluster is a running Kafka.
type Cluster struct {
	Addrs  []string // plain text, one for each node
	MTLS   []string // TLS, client certificate required
	SASL   []string // TLS, SASL PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	CA     string   // file: the authority that signed the brokers' certificates, for localhost and 127.0.0.1
	Cert   string   // file: a client's certificate
	Key    string   // file: its key
	Other  string   // file: an authority that signed nothing
	nodes  []*node
	client *kafka.Client
	ns     *lab.NS
}

type node struct {
	dir  string
	jars string
	ns   *lab.NS
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// Start starts a cluster and waits until it answers. It ends with the test.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if addr := os.Getenv("CTLOGD_TEST_KAFKA"); addr != "" {
		if o.Secure || o.Nodes > 1 || len(o.Config) > 0 || o.NS != nil {
			t.Skip("CTLOGD_TEST_KAFKA names a plain broker, and this test needs one of its own")
		}
		return newCluster([]string{addr}, nil)
	}
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	jars := fetch(t)
	dir := t.TempDir()

	// Four ports for each node. They are free now; should another process take one meanwhile, Kafka says so.
	ports := freePorts(t, o.NS, 4*o.Nodes)
	var plain, mtls, sasl, voters []string
	for i := range o.Nodes {
		p := ports[4*i:]
		plain = append(plain, "127.0.0.1:"+p[0])
		mtls = append(mtls, "127.0.0.1:"+p[1])
		sasl = append(sasl, "127.0.0.1:"+p[2])
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%s", i+1, p[3]))
	}
	c := newCluster(plain, o.NS)
	if o.Secure {
		c.MTLS, c.SASL = mtls, sasl
		c.writeCertificates(t, dir)
	}
	for i := range o.Nodes {
		n := &node{dir: filepath.Join(dir, strconv.Itoa(i+1)), jars: jars, ns: o.NS}
		if err := os.Mkdir(n.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		props := c.properties(o, i, n.dir, voters, ports[4*i+3])
		if err := os.WriteFile(n.path("server.properties"), []byte(props), 0o644); err != nil {
			t.Fatal(err)
		}
		n.format(t, o.Secure)
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.kill()
			if t.Failed() {
				log, _ := os.ReadFile(n.path("log"))
				t.Logf("broker log, last lines:\n%s", log[max(0, len(log)-4000):])
			}
		}
	})
	for _, n := range c.nodes {
		n.start(t)
	}
	c.await(t)
	return c
}

func newCluster(addrs []string, ns *lab.NS) *Cluster {
	client := &kafka.Client{Addr: kafka.TCP(addrs...), Timeout: 20 * time.Second}
	if ns != nil {
		client.Transport = &kafka.Transport{Dial: ns.DialContext}
	}
	return &Cluster{Addrs: addrs, client: client, ns: ns}
}

// startIn starts a command in a namespace, or where the test runs if that is nil.
func startIn(ns *lab.NS, cmd *exec.Cmd) error {
	if ns != nil {
		return ns.Start(cmd)
	}
	return cmd.Start()
}

// kcat runs kcat, which must be short, and returns what it writes to standard output; to standard error, as the error.
func (c *Cluster) kcat(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second) // it may wait for ever for a broker that was killed
	defer cancel()
	cmd := exec.CommandContext(ctx, "kcat", append([]string{"-b", strings.Join(c.Addrs, ",")}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := startIn(c.ns, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("kcat: %w: %s", err, &stderr)
	}
	return stdout.Bytes(), err
}

var fetchOnce = sync.OnceValues(func() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(file), "fetch.sh"))
	var why bytes.Buffer
	cmd.Stderr = io.MultiWriter(os.Stderr, &why)
	out, err := cmd.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(why.String()), "\n")
		return "", fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	return strings.TrimSpace(string(out)), nil
})

func fetch(t testing.TB) string {
	t.Helper()
	jars, err := fetchOnce()
	if err != nil {
		t.Skipf("needs Apache Kafka's jars, java and kcat (make test fetches them on Debian, as root): %v", err)
	}
	return jars
}

func freePorts(t testing.TB, ns *lab.NS, n int) (ports []string) {
	t.Helper()
	listen := net.Listen
	if ns != nil {
		listen = ns.Listen
	}
	for range n {
		l, err := listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// properties returns node i's server.properties.
func (c *Cluster) properties(o Options, i int, dir string, voters []string, controller string) string {
	var b strings.Builder
	set := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	listeners := "PLAIN://" + c.Addrs[i] + ",CONTROLLER://127.0.0.1:" + controller
	protocols := "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT"
	advertised := "PLAIN://" + c.Addrs[i]
	if o.Secure {
		secure := ",MTLS://" + c.MTLS[i] + ",SASL://" + c.SASL[i]
		listeners, advertised = listeners+secure, advertised+secure
		protocols += ",MTLS:SSL,SASL:SASL_SSL"
		set("ssl.keystore.type", "PEM")
		set("ssl.keystore.location", filepath.Join(filepath.Dir(dir), "broker.pem"))
		set("ssl.truststore.type", "PEM")
		set("ssl.truststore.location", c.CA)
		set("listener.name.mtls.ssl.client.auth", "required")
		set("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512")
		set("listener.name.sasl.plain.sasl.jaas.config", fmt.Sprintf(
			"org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=%q user_%s=%q;",
			User, Password, Admin, AdminPassword))
		for _, m := range []string{"256", "512"} {
			set("listener.name.sasl.scram-sha-"+m+".sasl.jaas.config",
				"org.apache.kafka.common.security.scram.ScramLoginModule required;")
		}
		set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
		set("super.users", "User:ANONYMOUS;User:CN=ctlogd;User:"+Admin)
	}
	set("node.id", i+1)
	set("process.roles", "broker,controller")
	set("controller.quorum.voters", strings.Join(voters, ","))
	set("controller.listener.names", "CONTROLLER")
	set("inter.broker.listener.name", "PLAIN")
	set("listeners", listeners)
	set("advertised.listeners", advertised)
	set("listener.security.protocol.map", protocols)
	set("log.dirs", filepath.Join(dir, "data"))
	set("auto.create.topics.enable", false)
	set("offsets.topic.replication.factor", o.Nodes)
	set("group.initial.rebalance.delay.ms", 0)
	// Enough for tests on one machine, and quick to notice a node that was killed.
	set("num.network.threads", 2)
	set("num.io.threads", 4)
	set("background.threads", 2)
	set("log.cleaner.enable", false)
	set("broker.session.timeout.ms", 3000)
	set("broker.heartbeat.interval.ms", 500)
	set("replica.lag.time.max.ms", 5000)
	for k, v := range o.Config {
		set(k, v)
	}
	return b.String()
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// java returns the command that runs class, its output in the node's log.
func (n *node) java(t testing.TB, class string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("java", append([]string{
		"-Xms64m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-cp", n.jars + "/*", class,
	}, args...)...)
	out, err := os.OpenFile(n.path("log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	cmd.Stdout, cmd.Stderr = out, out
	// The JVM ends with the test process, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (n *node) format(t testing.TB, secure bool) {
	t.Helper()
	args := []string{"format", "-t", "Y3Rsb2dkLXRlc3QtMTIzNA", "-c", n.path("server.properties")}
	if secure {
		for _, m := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			args = append(args,
				"--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", m, User, Password),
				"--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", m, Admin, AdminPassword))
		}
	}
	if err := n.java(t, "kafka.tools.StorageTool", args...).Run(); err != nil {
		log, _ := os.ReadFile(n.path("log"))
		t.Fatalf("format storage: %v\n%s", err, log)
	}
}

func (n *node) start(t testing.TB) {
	t.Helper()
	cmd, done := n.java(t, "kafka.Kafka", n.path("server.properties")), make(chan struct{})
	// The thread that starts a process with Pdeathsig must live as long as it does.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread() // a thread that ends would take what others have started on it along
		err := startIn(n.ns, cmd)
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		t.Fatalf("start Kafka: %v", err)
	}
	n.cmd, n.done = cmd, done
}

func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	<-n.done
	n.cmd = nil
}

// Kill ends node i, from 0 up, as kill -9 does. The test is skipped if the cluster is somebody else's.
func (c *Cluster) Kill(t testing.TB, i int) {
	t.Helper()
	if c.nodes == nil {
		t.Skip("the broker in CTLOGD_TEST_KAFKA is not ours to kill")
	}
	c.nodes[i].kill()
}

// Restart starts node i again, after Kill.
func (c *Cluster) Restart(t testing.TB, i int) {
	t.Helper()
	c.nodes[i].start(t)
}

// await waits until every node is in the cluster and answers.
func (c *Cluster) await(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, addr := range c.Addrs {
		for {
			out, err := c.kcat(ctx, nil, "-L", "-m", "2", "-b", addr)
			if err == nil && bytes.Contains(out, fmt.Appendf(nil, " %d brokers:", len(c.Addrs))) {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("no answer of %s: %s %v", addr, out, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// CreateTopic creates a topic; config holds pairs of names and values. It waits until the topic can be written to.
func (c *Cluster) CreateTopic(t testing.TB, topic string, partitions, replication int, config ...string) {
	t.Helper()
	tc := kafka.TopicConfig{Topic: topic, NumPartitions: partitions, ReplicationFactor: replication}
	for ; len(config) > 1; config = config[2:] {
		tc.ConfigEntries = append(tc.ConfigEntries, kafka.ConfigEntry{ConfigName: config[0], ConfigValue: config[1]})
	}
	res, err := c.client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{tc}})
	if err == nil {
		err = res.Errors[topic]
	}
	if err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	c.AwaitISR(t, topic, replication)
	// A broker names itself the leader shortly before it knows: asking for offsets tells.
	for t.Context().Err() == nil {
		if n, err := c.Messages(t, topic, partitions); err == nil && n == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Messages returns how many messages there are on a topic of so many partitions, duplicates included.
func (c *Cluster) Messages(t testing.TB, topic string, partitions int) (n int, err error) {
	t.Helper()
	query := []string{"-Q", "-m", "5"}
	for p := range partitions {
		query = append(query, "-t", fmt.Sprintf("%s:%d:-1", topic, p))
	}
	out, err := c.kcat(t.Context(), nil, query...)
	if err != nil {
		return 0, err
	}
	answers := offset.FindAllSubmatch(out, -1)
	if len(answers) != partitions {
		return 0, fmt.Errorf("kcat: %s", out)
	}
	for _, a := range answers {
		end, err := strconv.Atoi(string(a[1]))
		if err != nil {
			return 0, err
		}
		n += end
	}
	return n, nil
}

var offset = regexp.MustCompile(`offset ([0-9]+)`)

// Allow lets a user do something to a topic.
func (c *Cluster) Allow(t testing.TB, user, topic string, what kafka.ACLOperationType) {
	t.Helper()
	res, err := c.client.CreateACLs(t.Context(), &kafka.CreateACLsRequest{ACLs: []kafka.ACLEntry{{
		ResourceType:        kafka.ResourceTypeTopic,
		ResourceName:        topic,
		ResourcePatternType: kafka.PatternTypeLiteral,
		Principal:           "User:" + user,
		Host:                "*",
		Operation:           what,
		PermissionType:      kafka.ACLPermissionTypeAllow,
	}}})
	if err == nil && len(res.Errors) > 0 {
		err = res.Errors[0]
	}
	if err != nil {
		t.Fatalf("allow %s: %v", user, err)
	}
}

// Consume runs kcat, which is librdkafka, over all of a topic and returns its output, one line in format for each
// message ("%p %o %k %s": partition, offset, key, value; see kcat(1)).
func (c *Cluster) Consume(t testing.TB, topic, format string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := c.ConsumeTo(t, topic, format, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// ConsumeTo is Consume for topics that memory is too dear for, with further options of kcat.
func (c *Cluster) ConsumeTo(t testing.TB, topic, format string, w io.Writer, options ...string) error {
	var stderr bytes.Buffer
	args := []string{"-C", "-q", "-e", "-o", "beginning", "-X", "check.crcs=true",
		"-b", strings.Join(c.Addrs, ","), "-t", topic, "-f", format + "\n"}
	cmd := exec.CommandContext(t.Context(), "kcat", append(args, options...)...)
	cmd.Stdout, cmd.Stderr = w, &stderr
	err := startIn(c.ns, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("kcat: %w: %s", err, &stderr)
	}
	return nil
}

// Produce lets kcat write input, one message a line, with further options (-K: the separator of key and value).
func (c *Cluster) Produce(t testing.TB, topic, input string, options ...string) {
	t.Helper()
	args := append([]string{"-P", "-t", topic}, options...)
	if _, err := c.kcat(t.Context(), strings.NewReader(input), args...); err != nil {
		t.Fatal(err)
	}
}

// AwaitISR waits until every partition of the topic has n replicas in sync.
func (c *Cluster) AwaitISR(t testing.TB, topic string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	isr := regexp.MustCompile(`isrs: ([0-9,]*)`)
	for {
		out, err := c.kcat(ctx, nil, "-L", "-m", "2", "-t", topic)
		partitions := isr.FindAllSubmatch(out, -1)
		if err == nil && len(partitions) > 0 && !slices.ContainsFunc(partitions, func(m [][]byte) bool {
			return bytes.Count(m[1], []byte(",")) != n-1
		}) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("not in sync: %s %v", out, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
