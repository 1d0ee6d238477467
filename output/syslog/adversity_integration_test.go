//go:build integration

package syslog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// came counts the records in what an engine has written on a way. A last line without its end does not count.
func (e *engine) came(t *testing.T, way string) map[int]int {
	t.Helper()
	ids := map[int]int{}
	b, err := os.ReadFile(e.file(way))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)"ct_id":(\d+)[,}].*\n`).FindAllSubmatch(b, -1) {
		var id int
		if err := json.Unmarshal(m[1], &id); err != nil {
			t.Fatal(err)
		}
		ids[id]++
	}
	return ids
}

// TestKilledMidStream kills an rsyslogd, and then the one that stands in, while records go there, without any warning. What
// the host of one had not acknowledged comes to the other one; only what it had can be missing, as it was taken and not
// written; and only what it had not can come twice.
func TestKilledMidStream(t *testing.T) {
	first, _ := newRsyslogd(t, "")
	second, _ := newRsyslogd(t, "")
	first.begin(t)
	second.begin(t)
	w := newWriter(t, Config{Address: fmt.Sprint("tcp://127.0.0.1:", first.ports["tcp"]),
		Failover: []string{fmt.Sprint("tcp://127.0.0.1:", second.ports["tcp"])}})
	n := 0
	type kill struct{ before, after int } // records acknowledged then
	var kills []kill
	for i := range 4 {
		victim := []*engine{first, second}[i%2]
		for range 20 {
			send(t, w, n, n+500)
			n += 500
		}
		k := kill{before: int(w.Acknowledged())}
		victim.cmd.Process.Kill()
		<-victim.exited
		k.after = int(w.Acknowledged())
		kills = append(kills, k)
		send(t, w, n, n+500) // the other one takes them
		n += 500
		victim.begin(t)
	}
	acknowledged(t, w, n)
	if err := w.Close(context.Background()); err != nil {
		t.Error(err)
	}
	came := func() map[int]int {
		ids := first.came(t, "tcp")
		for id, k := range second.came(t, "tcp") {
			ids[id] += k
		}
		return ids
	}
	eventually(t, "the last record is there", func() bool { return came()[n-1] > 0 })
	first.end(t)
	second.end(t)
	ids := came()
	missing, twice := 0, 0
	for i := range n {
		switch {
		case ids[i] == 0:
			missing++
			if !slices.ContainsFunc(kills, func(k kill) bool { return i < k.after }) {
				t.Fatalf("record %d is missing, and nobody had acknowledged it: %v", i, kills)
			}
		case ids[i] > 1:
			twice++
			if !slices.ContainsFunc(kills, func(k kill) bool { return i >= k.before }) {
				t.Fatalf("record %d came %d times, and had been acknowledged: %v", i, ids[i], kills)
			}
		}
	}
	t.Logf("of %d records %d were taken and not written by who was killed, %d came twice", n, missing, twice)
}

// newSyslogNG returns a syslog-ng that listens over TCP and TLS, waits for its disk, and writes into out, or into its own
// directory.
func newSyslogNG(t *testing.T, out string) (*engine, TLS) {
	t.Helper()
	command := syslogNG(t)
	e := newEngine(t, "tcp", "tls")
	if out != "" {
		e.out = out
	}
	secure := e.certify(t)
	text := fmt.Sprintf(`@version: 3.38
options { stats-freq(0); log-fifo-size(10000); flush-lines(1); log-msg-size(65536); keep-hostname(yes); time-reopen(1); };
source s_tcp { syslog(ip("127.0.0.1") transport("tcp") port(%[2]d) max-connections(20) log-iw-size(2000)); };
source s_tls { syslog(ip("127.0.0.1") transport("tls") port(%[3]d) max-connections(20) log-iw-size(2000)
    tls(key-file("%[1]s/server-key.pem") cert-file("%[1]s/server.pem") ca-file("%[1]s/ca.pem") peer-verify(required-trusted))); };
`, e.dir, e.ports["tcp"], e.ports["tls"])
	for _, way := range []string{"tcp", "tls"} {
		text += fmt.Sprintf("destination d_%[1]s { file(%[2]q template(\"$SDATA $MSG\\n\")); };\n"+
			"log { source(s_%[1]s); destination(d_%[1]s); flags(flow-control); };\n", way, e.file(way))
	}
	conf := filepath.Join(e.dir, "syslog-ng.conf")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	e.command = func() *exec.Cmd { return command(conf, e.dir) }
	return e, secure
}

// TestSyslogNGDiskFull has the disk of a real syslog-ng full while records go there. With flow control it stops reading, and the
// records wait; when there is room again, all of them arrive.
func TestSyslogNGDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a small disk")
	}
	dir := t.TempDir()
	mount := filepath.Join(dir, "mount")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	disk, err := lab.NewDisk(filepath.Join(dir, "image"), mount, "16M")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	e, _ := newSyslogNG(t, mount)
	e.begin(t)
	t.Cleanup(func() { e.cmd.Process.Kill(); <-e.exited })
	w := newWriter(t, Config{Address: fmt.Sprint("tcp://127.0.0.1:", e.ports["tcp"])})
	n := 500
	send(t, w, 0, n)
	e.await(t, "tcp", n)
	if err := disk.Fill(0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for err = nil; err == nil && n < 100_000; { // until nobody takes any more, or enough for that it does not matter
		var k int
		k, err = w.Write(ctx, records(n, n+100))
		n += k
	}
	if got := e.lines("tcp"); got >= n {
		t.Fatalf("%d of %d records are on a full disk", got, n)
	}
	if err := disk.Free(); err != nil {
		t.Fatal(err)
	}
	send(t, w, n, n+10)
	n += 10
	acknowledged(t, w, n)
	var ids map[int]int
	eventually(t, "all records are there", func() bool {
		ids = e.came(t, "tcp")
		for i := range n {
			if ids[i] == 0 {
				return false
			}
		}
		return true // and more, of a Write that was not acknowledged
	})
	if err := w.Close(context.Background()); err != nil {
		t.Error(err)
	}
	t.Logf("%d records, %d lines", n, e.lines("tcp"))
}

// TestSyslogNGRefuses shows a real syslog-ng certificates that it does not take, and trusts it wrongly: nothing counts as
// delivered, and the error says why. With the right files in their place the next Write delivers.
func TestSyslogNGRefuses(t *testing.T) {
	e, secure := newSyslogNG(t, "")
	e.begin(t)
	stranger := certtest.New(t)
	_, strangeCert, strangeKey := stranger.Pair(t, "client", time.Hour)
	for name, tt := range map[string]struct {
		tls  TLS
		want string
	}{
		"another authority of ours":   {TLS{CA: certtest.Write(t, "ca.pem", stranger.PEM), Cert: secure.Cert, Key: secure.Key}, "unknown authority"},
		"another name":                {TLS{CA: secure.CA, Cert: secure.Cert, Key: secure.Key, ServerName: "example.net"}, "example.net"},
		"no certificate":              {TLS{CA: secure.CA}, "tls: |closed by the receiver|reset"},
		"another authority of theirs": {TLS{CA: secure.CA, Cert: strangeCert, Key: strangeKey}, "tls: |closed by the receiver|reset"},
	} {
		w := newWriter(t, Config{Address: fmt.Sprint("tls://127.0.0.1:", e.ports["tls"]), TLS: tt.tls})
		n, err := w.Write(t.Context(), records(0, 1))
		if n != 0 || err == nil || !regexp.MustCompile(tt.want).MatchString(err.Error()) {
			t.Errorf("%s: Write = %d, %v", name, n, err)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
	w := newWriter(t, Config{Address: fmt.Sprint("tls://127.0.0.1:", e.ports["tls"]), TLS: secure})
	send(t, w, 0, 10)
	e.await(t, "tls", 10)
	if err := w.Close(context.Background()); err != nil {
		t.Error(err)
	}
	e.check(t, "tls", 10)
	if b, _ := os.ReadFile(e.file("tls")); bytes.Count(b, []byte("\n")) != 10 {
		t.Errorf("%s", b)
	}
}
