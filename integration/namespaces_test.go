//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// spaces is a daemon that reads the events of many namespaces. It has a mount namespace of its own, so that nobody else's
// namespaces have names there.
type spaces struct {
	*daemon
	control string // its configuration
	more    string // what it has besides
}

// startSpaces runs ctlogd in ns with input as its input's configuration. Of wrap, if there is any, the daemon is an argument.
func startSpaces(t *testing.T, ns *lab.NS, input string, wrap ...string) *spaces {
	t.Helper()
	return startSpacesWith(t, ns, input, func(string) string { return "" }, wrap...)
}

// startSpacesWith has more in the configuration, of which it tells the daemon's directory.
func startSpacesWith(t *testing.T, ns *lab.NS, input string, more func(dir string) string, wrap ...string) *spaces {
	t.Helper()
	need(t, "unshare", "nsenter")
	must(t, os.MkdirAll("/run/netns", 0o755))
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777)) // some are not root
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	s := &spaces{daemon: &daemon{file: filepath.Join(dir, "flows.jsonl")}, control: filepath.Join(dir, "ctlogd.yaml"), more: more(dir)}
	s.configure(t, input)
	args := append([]string{"--mount", "--propagation", "private", "sh", "-c", `mount -t tmpfs none /run/netns && exec "$@"`, "sh"}, wrap...)
	cmd := exec.Command("unshare", append(args, buildDaemon(t, false), "run", "-c", s.control)...)
	s.process = start(t, ns, cmd)
	s.awaitMember(t, lab.GroupDestroy)
	eventually(t, "the output has opened its file, beside the start", func() bool {
		_, err := os.Stat(s.file)
		return err == nil
	})
	return s
}

func (s *spaces) configure(t *testing.T, input string) {
	t.Helper()
	dir := filepath.Dir(s.file)
	must(t, os.WriteFile(s.control, fmt.Appendf(nil, "input: {conntrack: %s}\nlive: {socket: %s/sock}\noutputs:\n  jsonl: [{path: %s}]\n%s",
		input, dir, s.file, s.more), 0o644))
}

// reload changes the input's configuration, and waits until the daemon has it.
func (s *spaces) reload(t *testing.T, input string) {
	t.Helper()
	s.configure(t, input)
	before := strings.Count(s.stderr.String(), "configuration reloaded")
	must(t, s.Process.Signal(syscall.SIGHUP))
	eventually(t, "the configuration is reloaded", func() bool {
		return s.ended() || strings.Count(s.stderr.String(), "configuration reloaded") > before
	})
}

// inside runs a shell's command where the daemon sees names, and returns what it writes.
func (s *spaces) inside(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--target", fmt.Sprint(s.Process.Pid), "--mount", "--net", "sh", "-ec", script, "sh"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", script, args, err, out)
	}
	return string(out)
}

// name gives a namespace a name, and waits until its events are heard.
func (s *spaces) name(t *testing.T, ns *lab.NS, name string) {
	t.Helper()
	s.mount(t, ns, name)
	s.logs(t, fmt.Sprintf(`are heard	{"netns": "%s"`, name))
}

func (s *spaces) mount(t *testing.T, ns *lab.NS, name string) {
	t.Helper()
	s.inside(t, `touch "/run/netns/$2" && mount --no-canonicalize --bind "$1" "/run/netns/$2"`, ns.Path(), name)
}

func (s *spaces) unname(t *testing.T, name string) {
	t.Helper()
	s.inside(t, `umount -l "/run/netns/$1" && rm "/run/netns/$1"`, name)
}

// logs waits until the daemon has logged something.
func (s *spaces) logs(t *testing.T, what string) {
	t.Helper()
	eventually(t, "the daemon logs "+what, func() bool { return s.ended() || strings.Contains(s.stderr.String(), what) })
}

// status returns what ctlogd status says of it.
func (s *spaces) status(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(buildDaemon(t, false), append([]string{"status", "--socket", filepath.Join(filepath.Dir(s.file), "sock")}, args...)...)
	out, err := cmd.Output()
	if len(out) == 0 {
		t.Fatal(err)
	}
	return string(out)
}

// spaceBook counts records by namespace, event and flow.
type spaceBook struct {
	flows map[string]map[int]int // by "NETNS EVENT", the flow's number
	ofID  map[string]string      // "NETNS EVENT NUMBER": flow_id
	zones map[string]int         // of flows that are no flood's
	gaps  []string
	ids   map[string]string // flow_id: nsid and flow that it is of
	nsids map[string]int32
}

func (s *spaces) book(t *testing.T) *spaceBook {
	t.Helper()
	b := &spaceBook{flows: map[string]map[int]int{}, ofID: map[string]string{}, zones: map[string]int{}, ids: map[string]string{}, nsids: map[string]int32{}}
	f, err := os.Open(s.file)
	must(t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r struct {
			Event, Netns, Cause string
			NSID                *int32
			NATSrcIP            netip.Addr `json:"nat_src_ip"`
			NATSrcPort          uint16     `json:"nat_src_port"`
			SrcIP               string     `json:"src_ip"`
			SrcPort             uint16     `json:"src_port"`
			ZoneOrig            *uint16    `json:"zone_orig"`
			ZoneReply           *uint16    `json:"zone_reply"`
			FlowID              string     `json:"flow_id"`
		}
		must(t, json.Unmarshal(lines.Bytes(), &r))
		if r.Event == "gap" {
			b.gaps = append(b.gaps, lines.Text())
			continue
		}
		if (r.Netns == "") != (r.NSID == nil) {
			t.Fatalf("a name without an id, or the reverse: %s", lines.Text())
		}
		if r.NSID != nil {
			b.nsids[r.Netns] = *r.NSID
		}
		i, ok := lab.FlowNumber(r.NATSrcIP, r.NATSrcPort)
		if !ok {
			key := fmt.Sprintf("%s %s %s:%d", r.Netns, r.Event, r.SrcIP, r.SrcPort)
			if r.ZoneOrig != nil { // the kernel chooses the port after the translation, so that the reply's tuple is unique
				key += fmt.Sprintf(" zone %d", *r.ZoneOrig)
			}
			if r.ZoneReply != nil {
				key += fmt.Sprintf(" -> %s:%d zone %d", r.NATSrcIP, r.NATSrcPort, *r.ZoneReply)
			}
			b.zones[key]++
			continue
		}
		key := r.Netns + " " + r.Event
		if b.flows[key] == nil {
			b.flows[key] = map[int]int{}
		}
		b.flows[key][i]++
		b.ofID[fmt.Sprint(key, " ", i)] = r.FlowID
		what := fmt.Sprint("own ", i)
		if r.NSID != nil {
			what = fmt.Sprint(*r.NSID, " ", i)
		}
		if before, ok := b.ids[r.FlowID]; r.FlowID == "" || ok && before != what {
			t.Errorf("flow_id %q is of %s and of %s", r.FlowID, before, what)
		}
		b.ids[r.FlowID] = what
	}
	must(t, lines.Err())
	return b
}

// check says what the flows from <= i < to have in the book: one record each.
func (b *spaceBook) check(t *testing.T, key string, from, to int) {
	t.Helper()
	missing, twice := 0, 0
	for i := from; i < to; i++ {
		switch n := b.flows[key][i]; {
		case n == 0:
			missing++
		case n > 1:
			twice++
		}
	}
	if missing > 0 || twice > 0 || len(b.flows[key]) != to-from {
		t.Errorf("%s: of %d flows %d are missing and %d twice; there are %d", key, to-from, missing, twice, len(b.flows[key]))
	}
}

// newSpace returns a namespace with a generator.
func newSpace(t *testing.T, name string) (*lab.NS, *lab.Flood) {
	t.Helper()
	ns := newNS(t, name)
	prepare(t, ns)
	f, err := ns.NewFlood()
	must(t, err)
	return ns, f
}

// TestNamespaces holds the records of one daemon to what has happened in its own namespace and in five others, which all
// have the same flows, while others come and go, and while the daemon is stopped.
func TestNamespaces(t *testing.T) {
	need(t)
	n, rounds := scale(6_000, 200_000), scale(6, 120)
	room(t, 4*n)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpaces(t, home, "{namespaces: all, receive_buffer: 128KiB}")
	type space struct {
		*lab.NS
		*lab.Flood
	}
	var five []space
	for i := range 5 {
		ns, f := newSpace(t, fmt.Sprint("ns", i))
		defer f.Close()
		s.name(t, ns, ns.Name)
		five = append(five, space{ns, f})
	}

	// All of them churn, with the same tuples.
	var churn sync.WaitGroup
	for _, sp := range append(five, space{home, own}) {
		churn.Go(func() {
			if err := sp.Churn(0, n); err != nil {
				t.Error(err)
			}
		})
	}
	// Others come and go. Each has flows that end before it goes, and flows that do not, or, in every other one, that end at the
	// time at which the name goes.
	const short, ended = 200, 120
	for i := range rounds {
		name := fmt.Sprint("short", i)
		ns, f := newSpace(t, name)
		s.name(t, ns, name)
		must(t, f.Create(0, short))
		must(t, f.Delete(0, ended))
		if i%2 == 1 {
			churn.Go(func() {
				err := f.Delete(ended, short)
				if err = errors.Join(err, f.Close(), ns.Close()); err != nil {
					t.Error(err)
				}
			})
		} else {
			must(t, f.Close())
			must(t, ns.Close())
		}
		s.unname(t, name)
	}
	t.Log("they have come and gone")
	churn.Wait()
	t.Log("the others have churned")

	// Two flows of one address and port, in two zones of the original direction, and two that have one address and port after
	// the translation, in two zones of the reply direction: in each of two namespaces.
	for _, sp := range five[:2] {
		must(t, sp.Nft(`table ip zones {
			chain output {
				type filter hook output priority raw
				meta mark 101 ct original zone set 101
				meta mark 102 ct original zone set 102
				meta mark 201 ct reply zone set 201
				meta mark 202 ct reply zone set 202
			}
			chain postrouting {
				type nat hook postrouting priority srcnat
				udp dport 7001 snat to 127.0.0.9
				udp dport 7002 snat to 127.0.0.9:6000
			}
		}`))
		for _, mark := range []int{101, 102} {
			must(t, sp.Do(func() error { return sendMarked(mark, 5000, 7001) }))
		}
		for _, mark := range []int{201, 202} {
			must(t, sp.Do(func() error { return sendMarked(mark, 5000+mark, 7002) }))
		}
		must(t, sp.Flush())
	}

	// Nobody reads while flows end, in a namespace that is gone when somebody reads again among others.
	must(t, s.Process.Signal(syscall.SIGSTOP))
	for _, sp := range five {
		must(t, sp.Create(n, 2*n))
		must(t, sp.Delete(n, 2*n))
	}
	held := false
	for _, sp := range five {
		count, err := sp.ReadSysctl("net.netfilter.nf_conntrack_count")
		must(t, err)
		held = held || count != "0"
	}
	if !held {
		t.Error("the kernel held nothing back: the test has tested nothing")
	}
	last := five[4]
	must(t, last.Flood.Close())
	must(t, last.NS.Close())
	s.unname(t, "ns4")
	t.Log("it goes on")
	must(t, s.Process.Signal(syscall.SIGCONT))

	want := 5*2*n + n + rounds*short + 8
	lines := lineCounter{path: s.file}
	eventually(t, "all records are written", func() bool { return lines.count(t) >= want })
	eventually(t, "no namespace is held that nobody else knows", func() bool { return !holds(t, s.Process.Pid, "ns4") })
	s.stop(t)

	b := s.book(t)
	b.check(t, " destroy", 0, n)
	for i := range five {
		b.check(t, fmt.Sprintf("ns%d destroy", i), 0, 2*n)
	}
	for i := range rounds {
		name := fmt.Sprint("short", i)
		if i%2 == 1 { // its name or its id, but each end once
			id := fmt.Sprint(b.nsids[name], " destroy")
			for flow, n := range b.flows[id] {
				b.flows[name+" destroy"][flow] += n
			}
			delete(b.nsids, strings.TrimSuffix(id, " destroy"))
			b.check(t, name+" destroy", 0, short)
			continue
		}
		b.check(t, name+" destroy", 0, ended)
		b.check(t, name+" open", ended, short)
	}
	for _, ns := range []string{"ns0", "ns1"} {
		for _, key := range []string{"127.0.0.1:5000 zone 101", "127.0.0.1:5000 zone 102",
			"127.0.0.1:5201 -> 127.0.0.9:6000 zone 201", "127.0.0.1:5202 -> 127.0.0.9:6000 zone 202"} {
			if key = ns + " destroy " + key; b.zones[key] != 1 {
				t.Errorf("%d records of %s; there are %v", b.zones[key], key, b.zones)
			}
		}
	}
	if len(b.gaps) > 0 {
		t.Errorf("gaps:\n%s", strings.Join(b.gaps, "\n"))
	}
	if len(b.nsids) != 5+rounds {
		t.Errorf("namespaces have the ids %v", b.nsids)
	}
}

// holds reports whether the process has sockets in the namespace that has the name in its own messages.
func holds(t *testing.T, pid int, name string) bool {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	n := 0
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); strings.HasPrefix(target, "net:[") {
			n++
		}
	}
	return n > 5 // its own, and those of ns0 to ns3
}

// sendMarked sends a datagram from one port of this host to another, with a mark.
func sendMarked(mark, from, to int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	loopback := [4]byte{127, 0, 0, 1}
	for _, err := range []error{
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback, Port: from}),
		unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: loopback, Port: to}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestNamespaceRights: with fewer rights ctlogd does less, and says what.
func TestNamespaceRights(t *testing.T) {
	need(t, "setpriv")
	for _, tt := range []struct {
		name, caps string
		kept       string // CapEff and CapPrm once it runs
		heard      bool
		logged     string
		event      string // what is there of a flow that is alive when its namespace goes
	}{
		{"all", "+net_admin,+net_broadcast,+sys_admin", "0000000000201000", true, "", "open"},
		{"no entry", "+net_admin,+net_broadcast", "0000000000001000", true, "its table is neither read nor guarded", "gap"},
		{"none", "+net_admin", "0000000000001000", false, "events of other network namespaces are not heard", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home, own := newSpace(t, "home")
			defer own.Close()
			s := startSpaces(t, home, "{namespaces: all}", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
				"--inh-caps", tt.caps, "--ambient-caps", tt.caps)
			if tt.logged == "" {
				tt.logged = "logging flows"
			}
			eventually(t, "it has given up what it does not need", func() bool {
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Process.Pid))
				must(t, err)
				return strings.Contains(string(status), "CapEff:\t"+tt.kept+"\n") && strings.Contains(string(status), "CapPrm:\t"+tt.kept+"\n")
			})
			ns, f := newSpace(t, "blue")
			if tt.heard {
				s.name(t, ns, "blue")
			}
			s.logs(t, tt.logged)
			must(t, own.Churn(0, 10))
			must(t, f.Create(0, 20))
			must(t, f.Delete(0, 10))
			must(t, f.Close())
			must(t, ns.Close())
			if tt.heard {
				s.unname(t, "blue")
			}
			lines := lineCounter{path: s.file}
			want := map[string]int{"open": 10 + 10 + 10, "gap": 10 + 10 + 1, "": 10}[tt.event]
			eventually(t, "all records are written", func() bool { return lines.count(t) >= want })
			if out := s.status(t); strings.Contains(out, "degraded") != (tt.event != "open") {
				t.Errorf("status:\n%s", out)
			}
			s.stop(t)
			b := s.book(t)
			b.check(t, " destroy", 0, 10)
			if tt.heard {
				b.check(t, "blue destroy", 0, 10)
			}
			switch tt.event {
			case "open":
				b.check(t, "blue open", 10, 20)
			case "gap":
				if len(b.gaps) != 1 || !strings.Contains(b.gaps[0], `"netns":"blue"`) || !strings.Contains(b.gaps[0], "untracked") {
					t.Errorf("gaps: %v", b.gaps)
				}
			}
			if tt.event != "gap" && len(b.gaps) > 0 {
				t.Errorf("gaps: %v", b.gaps)
			}
		})
	}
}

// TestNamespacesReloaded: the list changes while it runs; from one's own namespace to others, or back, takes a restart.
func TestNamespacesReloaded(t *testing.T) {
	need(t)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpaces(t, home, "{namespaces: [blue]}")
	blue, inBlue := newSpace(t, "blue")
	red, inRed := newSpace(t, "red")
	defer inBlue.Close()
	defer inRed.Close()
	s.name(t, blue, "blue")
	s.inside(t, `touch /run/netns/red && mount --no-canonicalize --bind "$1" /run/netns/red && ip netns set red 77`, red.Path())
	reload := func(namespaces, logged string) {
		t.Helper()
		s.reload(t, "{namespaces: "+namespaces+"}")
		s.logs(t, logged)
	}
	churn := func(from, to int) {
		t.Helper()
		must(t, inBlue.Churn(from, to))
		must(t, inRed.Churn(from, to))
	}
	lines := lineCounter{path: s.file}
	settle := func(want int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d records are written", want), func() bool { return lines.count(t) >= want })
	}
	churn(0, 10)
	settle(10)
	reload("all", `are heard	{"netns": "red", "nsid": 77}`)
	churn(10, 20)
	settle(30)
	reload("[red]", `"changed": ["input.conntrack.namespaces"]`)
	eventually(t, "blue is not held any more", func() bool {
		out := s.status(t, "--json")
		return strings.Contains(out, `"red"`) && !strings.Contains(out, `"blue"`)
	})
	churn(20, 30)
	settle(40)
	reload("own", `takes effect at the next start	{"key": "input.conntrack.namespaces"}`)
	churn(30, 40)
	settle(50)
	s.stop(t)
	b := s.book(t)
	b.check(t, "blue destroy", 0, 20)
	b.check(t, "red destroy", 10, 40)
	if len(b.gaps) > 0 {
		t.Errorf("gaps: %v", b.gaps)
	}
}
