package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// serve answers each connection with do until the test ends, and returns its address.
func serve(t *testing.T, do func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				do(c)
			}()
		}
	}()
	return l.Addr().String()
}

// TestNoBroker: whatever is at the address instead of a Kafka broker, Write says what is wrong, in time, and goes on.
func TestNoBroker(t *testing.T) {
	authority := certtest.New(t)
	ca := certtest.Write(t, "ca.pem", authority.PEM)
	expired, _, _ := authority.Pair(t, "server", -time.Hour)
	valid, _, _ := authority.Pair(t, "server", 24*time.Hour)
	silent := func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); time.Sleep(time.Second) }
	says := func(answer string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1000))
			_, _ = c.Write([]byte(answer))
		}
	}
	overTLS := func(cert tls.Certificate, do func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) { do(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})) }
	}
	web := says("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")
	for _, tc := range []struct {
		name, addr string
		tls        *TLS
		class      Class
		want       string // a part of the message
	}{
		{"says nothing", serve(t, silent), nil, ClassTimeout, "i/o timeout"},
		{"says nothing to TLS", serve(t, silent), &TLS{}, ClassTimeout, "deadline exceeded"},
		{"hangs up", serve(t, func(net.Conn) {}), nil, ClassConnection, ""},
		{"a web server", serve(t, web), nil, ClassConnection, errNoKafka.Error()},
		{"a web server over TLS", serve(t, overTLS(valid, web)), &TLS{CA: ca}, ClassConnection, errNoKafka.Error()},
		{"ssh", serve(t, says("SSH-2.0-OpenSSH_9.2\r\n")), nil, ClassConnection, errNoKafka.Error()},
		{"TLS", serve(t, says("\x15\x03\x03\x00\x02\x02\x46")), nil, ClassConnection, errTLS.Error()},
		{"expired", serve(t, overTLS(expired, web)), &TLS{CA: ca}, ClassTLS, "certificate has expired or is not yet valid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWriter(t, []string{tc.addr}, "flows", func(c *Config) {
				c.ConnectTimeout, c.TLS = 100*time.Millisecond, tc.tls
				if tc.class != ClassTimeout {
					c.ConnectTimeout = time.Minute
				}
			})
			for range 2 {
				n, err := w.Write(t.Context(), records(10))
				var e *Error
				if n != 0 || !errors.As(err, &e) || e.Class != tc.class || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%d, %v\nwant class %v and %q", n, err, tc.class, tc.want)
				}
			}
		})
	}
}

// TestResolverGone: the broker has a name, and no resolver answers.
func TestResolverGone(t *testing.T) {
	w := newWriter(t, []string{"kafka.example.net:9092"}, "flows", nil)
	w.conns.dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("network is down")
	}}
	n, err := w.Write(t.Context(), records(10))
	var e *Error
	if n != 0 || !errors.As(err, &e) || e.Class != ClassConnection || !strings.Contains(err.Error(), "lookup kafka.example.net") {
		t.Errorf("%d, %v", n, err)
	}
}

// TestEndDuringSilence: the end of ctlogd waits for no broker, wherever that has fallen silent.
func TestEndDuringSilence(t *testing.T) {
	for _, tc := range []struct {
		name string
		addr func(t *testing.T, asked chan<- struct{}) []string
		tls  *TLS
	}{
		{"connection", func(t *testing.T, asked chan<- struct{}) []string {
			return []string{serve(t, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 1))
				asked <- struct{}{}
				<-t.Context().Done()
			})}
		}, nil},
		{"TLS handshake", func(t *testing.T, asked chan<- struct{}) []string {
			return []string{serve(t, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 1))
				asked <- struct{}{}
				<-t.Context().Done()
			})}
		}, &TLS{}},
		{"metadata", func(t *testing.T, asked chan<- struct{}) []string {
			f := newFake(t, 1, ok)
			f.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
				f.KeepControl()
				asked <- struct{}{}
				return nil, nil, true
			})
			return f.ListenAddrs()
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := make(chan struct{}, 10)
			w := newWriter(t, tc.addr(t, asked), "flows", func(c *Config) {
				c.ConnectTimeout, c.RequestTimeout, c.TLS = maxTimeout, maxTimeout, tc.tls
			})
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-asked
				cancel()
			}()
			n, err := w.Write(ctx, records(10))
			if n != 0 || !errors.Is(err, context.Canceled) || len(errorsOf(w)) != 0 {
				t.Errorf("%d, %v, counted %v", n, err, errorsOf(w))
			}
		})
	}
}

// TestTopicMadeAnew: the topic is deleted and created again with another number of partitions while records flow. All of
// them arrive, each in the partition that its key has by then.
func TestTopicMadeAnew(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before int32
		after  int
	}{{"fewer", 6, 2}, {"more", 2, 6}} {
		t.Run(tc.name, func(t *testing.T) {
			var partitions atomic.Int32
			partitions.Store(tc.before)
			f := newFake(t, tc.before, func(p int32, _ []got) reply {
				if p >= partitions.Load() {
					return reply{code: kafka.UnknownTopicOrPartition}
				}
				return reply{}
			})
			w := f.writer(t, nil)
			all := records(300)
			deliver := func(recs []*flow.Record) {
				t.Helper()
				for len(recs) > 0 {
					n, err := w.Write(t.Context(), recs)
					if recs = recs[n:]; err != nil && t.Context().Err() != nil {
						t.Fatal(err)
					}
				}
			}
			deliver(all[:100])

			client := kafka.Client{Addr: kafka.TCP(f.ListenAddrs()...)}
			if res, err := client.DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{"flows"}}); err != nil ||
				res.Errors["flows"] != nil {
				t.Fatal(res, err)
			}
			partitions.Store(0)
			n, err := w.Write(t.Context(), all[100:200])
			var e *Error
			if n != 0 || !errors.As(err, &e) || e.Class != ClassTopic {
				t.Errorf("while it is gone: %d, %v", n, err)
			}
			if res, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
				Topic: "flows", NumPartitions: tc.after, ReplicationFactor: 1}}}); err != nil || res.Errors["flows"] != nil {
				t.Fatal(res, err)
			}
			f.mu.Lock()
			clear(f.accepted)
			f.mu.Unlock()
			partitions.Store(int32(tc.after))
			deliver(all[100:])

			if got, want := len(f.all()), len(all)-100; got != want {
				t.Errorf("%d records arrived, want %d", got, want)
			}
			if len(f.accepted) != tc.after {
				t.Errorf("they are in %d partitions, want %d", len(f.accepted), tc.after)
			}
		})
	}
}

// TestDeadLettersDiskFull: what does not fit leaves no half line behind.
func TestDeadLettersDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system that is full soon")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "dead.jsonl")
	f := newFake(t, 1, func(int32, []got) reply { return reply{code: kafka.InvalidRecord} })
	w := f.writer(t, func(c *Config) { c.DeadLetter = path })
	for range 2 { // some fit, then more than fit
		for _, n := range []int{2, 100} {
			_, err := w.Write(t.Context(), records(n))
			var r interface{ Rejected() int }
			if !errors.As(err, &r) || r.Rejected() != n {
				t.Errorf("%v, want %d rejected", err, n)
			}
		}
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Count(string(file), "\n")
	if !strings.HasSuffix(string(file), "}\n") || uint64(lines) != w.Stats.DeadLetters.Load() || lines < 4 {
		t.Errorf("%d lines, counted %d, the end is %q", lines, w.Stats.DeadLetters.Load(), file[max(0, len(file)-20):])
	}
	if n := w.Stats.Rejected.Load(); n != 204 {
		t.Errorf("counted %d rejected", n)
	}
}

// TestPasswordReadAnew: a password that is mended in its file is used by the next connection.
func TestPasswordReadAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	m, err := (*SASL)(nil).mechanism()
	if m != nil || err != nil {
		t.Error(m, err)
	}
	for i, password := range []string{"first", "second"} {
		if err := os.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if m, err = (&SASL{Mechanism: "PLAIN", Username: "u", PasswordFile: path}).mechanism(); err != nil {
				t.Fatal(err)
			}
		}
		if _, first, err := m.Start(t.Context()); err != nil || string(first) != "\x00u\x00"+password {
			t.Errorf("%q, %v", first, err)
		}
	}
}

// TestFilesReadAnew: certificates that are renewed in their files are used by the next connection.
func TestFilesReadAnew(t *testing.T) {
	authority := certtest.New(t)
	pair, _, _ := authority.Pair(t, "server", 24*time.Hour)
	ca, other := certtest.Write(t, "ca.pem", authority.PEM), certtest.Write(t, "ca.pem", certtest.New(t).PEM)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "flows"),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	w := newWriter(t, cluster.ListenAddrs(), "flows", func(c *Config) { c.TLS = &TLS{CA: other} })
	var e *Error
	if n, err := w.Write(t.Context(), records(10)); n != 0 || !errors.As(err, &e) || e.Class != ClassTLS {
		t.Errorf("with another authority: %d, %v", n, err)
	}
	if err := os.Rename(ca, other); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Write(t.Context(), records(10)); n != 10 || err != nil {
		t.Errorf("with the right one: %d, %v", n, err)
	}
}

// TestDialOption: brokers are connected to by the function that the options name, within connect_timeout.
func TestDialOption(t *testing.T) {
	cfg := Config{Brokers: []string{"192.0.2.1:9092"}, Topic: "flows", ConnectTimeout: 50 * time.Millisecond}
	cfg.Defaults()
	asked := make(chan string, 16)
	w, err := New(cfg, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		select {
		case asked <- network + " " + address:
		default:
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(t.Context())
	if n, err := w.Write(t.Context(), records(1)); n != 0 || err == nil {
		t.Errorf("Write returned %d, %v", n, err)
	}
	if got := <-asked; got != "tcp 192.0.2.1:9092" {
		t.Errorf("asked for %s", got)
	}
}
