//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestStartedBadly starts the daemon as scripts and containers sometimes do: without descriptors 0 to 2, with few in
// all, without an environment, and with a standard error whose reader ends. It logs each flow.
func TestStartedBadly(t *testing.T) {
	need(t)
	for name, prefix := range map[string]string{
		"no standard streams":        "exec <&- >&- 2>&-",
		"few descriptors":            "ulimit -n 20",
		"standard error has no end":  "mkfifo err; head -n 1 <err >/dev/null & exec 2>err",
		"standard error that closes": "mkfifo err; (exec <err) & exec 2>err",
		"no environment":             "unset PATH HOME TZ LANG; TZ=Nowhere/City; export TZ",
	} {
		t.Run(name, func(t *testing.T) {
			const n = 50
			ns, f := newFloodNS(t)
			dir := t.TempDir()
			conf, log := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows")
			text := "outputs:\n  jsonl:\n    - path: " + log + "\n"
			must(t, os.WriteFile(conf, []byte(text), 0o644))
			cmd := exec.Command("/bin/sh", "-c", "cd "+dir+"; "+prefix+"; exec "+buildDaemon(t, false)+" run -c "+conf)
			d := start(t, ns, cmd)
			d.awaitMember(t, lab.GroupDestroy)
			must(t, f.Churn(0, n))
			lines := lineCounter{path: log}
			eventually(t, "each flow is on record", func() bool { return lines.count(t) == n })
			must(t, d.Process.Signal(syscall.SIGHUP))
			must(t, f.Churn(n, 2*n))
			eventually(t, "each flow is on record", func() bool { return lines.count(t) == 2*n })
			d.stop(t)
		})
	}
}

// TestReloadRefused has the kernel refuse what a reload asks of the socket, when the new outputs' queues are made: the old
// configuration stays, nothing of the new one does, be it a descriptor or a goroutine, and the same file is taken once the kernel
// takes it.
func TestReloadRefused(t *testing.T) {
	need(t, "strace")
	const n = 100
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	conf, log, late := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows"), filepath.Join(dir, "late")
	must(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	old := "state_directory: " + dir + "/state\nmetrics: {listen: 127.0.0.1:9469}\noutputs:\n  jsonl:\n    - path: " + log + "\n"
	must(t, os.WriteFile(conf, []byte(old), 0o644))
	d := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	d.awaitMember(t, lab.GroupDestroy)
	awaitListener(t, ns, "tcp", 9469)
	m := &metricsOf{ns: ns}
	said := func(what string) int { return strings.Count(d.stderr.String(), what) }
	use := func() (descriptors, goroutines int) {
		n := d.descriptors(t)
		m.scrape(t)
		return n, int(m.value(t, "go_goroutines"))
	}
	count := lineCounter{path: log}
	must(t, f.Churn(0, n))
	eventually(t, "each flow is on record", func() bool { return count.count(t) == n })
	fds, goroutines := use()

	next := old + "    - path: " + late + "\n      spool: {path: " + dir + "/spool, max_size: 4MiB}\n" +
		"  ipfix:\n    - address: tcp://127.0.0.1:4739\n  archive:\n    - path: " + dir + "/archive\n"
	must(t, os.WriteFile(conf, []byte("input: {conntrack: {events: [new, destroy]}}\n"+next), 0o644))
	tracer := exec.Command("strace", "-f", "-e", "trace=setsockopt", "-e", "inject=setsockopt:error=ENOBUFS", "-p", fmt.Sprint(d.Process.Pid))
	refusing := start(t, ns, tracer)
	eventually(t, "the daemon is traced", func() bool { return strings.Contains(refusing.stderr.String(), "attached") })
	for i := range 5 {
		must(t, d.Process.Signal(syscall.SIGHUP))
		eventually(t, "the reload has failed", func() bool { return said("the kernel does not take it") > i })
	}
	must(t, refusing.Process.Signal(syscall.SIGINT))
	eventually(t, "the daemon is not traced any more", refusing.ended)
	eventually(t, fmt.Sprintf("there are %d descriptors and %d goroutines again", fds, goroutines), func() bool {
		nowFDs, now := use()
		return nowFDs <= fds && now <= goroutines
	})
	for _, file := range []string{late, dir + "/spool", dir + "/archive"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s is there, after reloads that failed", file)
		}
	}
	must(t, f.Churn(n, 2*n))
	eventually(t, "each flow is on record, its end alone", func() bool { return count.count(t) == 2*n })

	must(t, d.Process.Signal(syscall.SIGHUP))
	eventually(t, "the same file is taken", func() bool { return said("configuration reloaded") == 1 })
	must(t, f.Churn(2*n, 3*n))
	lateCount := lineCounter{path: late}
	eventually(t, "the new log has the flows from now on, begin and end", func() bool { return lateCount.count(t) == 2*n })
	d.stop(t)
}

// TestLinkDown takes the link to the receivers of syslog away, over UDP and over TCP, while flows end, and gives it back: the
// kernel says that there is no way, and every record arrives.
func TestLinkDown(t *testing.T) {
	need(t)
	ns, f := newFloodNS(t)
	far := newNS(t, "receiver")
	must(t, ns.Link("near", []string{"10.77.0.1/24"}, far, "far", []string{"10.77.0.2/24"}))
	udp, err := far.ListenPacket("udp", "10.77.0.2:514")
	must(t, err)
	defer udp.Close()
	tcp, err := far.Listen("tcp", "10.77.0.2:514")
	must(t, err)
	defer tcp.Close()
	var mu sync.Mutex
	got := map[string]int{}
	took := func(way string, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		got[way] += bytes.Count(b, []byte(`"ct_id":`))
	}
	has := func(n int) bool {
		mu.Lock()
		defer mu.Unlock()
		return got["udp"] >= n && got["tcp"] >= n
	}
	go func() {
		for buf := make([]byte, 64<<10); ; {
			n, _, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			took("udp", buf[:n])
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				var all []byte
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					all = append(all, buf[:n]...)
					if i := bytes.LastIndexByte(all, '}'); i >= 0 {
						took("tcp", all[:i+1])
						all = append(all[:0], all[i+1:]...)
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	d := runDaemon(t, ns, buildDaemon(t, false), "", "  syslog:\n    - address: udp://10.77.0.2\n    - address: tcp://10.77.0.2\n")
	const n = 20
	must(t, f.Churn(0, n))
	eventually(t, "the first records arrive", func() bool { return has(n) })
	must(t, ns.Run("ip", "link", "set", "near", "down"))
	must(t, f.Churn(n, 2*n))
	lines := lineCounter{path: d.file}
	eventually(t, "the file has what came meanwhile", func() bool { return lines.count(t) == 2*n })
	eventually(t, "the log tells of it", func() bool {
		return bytes.Contains([]byte(d.stderr.String()), []byte("network is unreachable"))
	})
	must(t, ns.Run("ip", "link", "set", "near", "up"))
	must(t, f.Churn(2*n, 3*n))
	eventually(t, fmt.Sprint("all records arrive: ", 3*n), func() bool { return has(3 * n) })
	d.stop(t)
}
