//go:build integration

package ipfix

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
	"github.com/ctlogd/ctlogd/output/ipfix/collect"
)

// secure is a TLS collector that shares no code with ours: openssl s_server appends what it receives to a file, which
// ipfixDump reads.
type secure struct {
	addr, port, file string
	args             []string
	kill             func()
}

// newSecure returns a collector that has not been started, with what it needs beside its address.
func newSecure(t *testing.T, a *certtest.Authority, cert, key []byte, args ...string) *secure {
	t.Helper()
	need(t, "openssl")
	need(t, "ipfixDump")
	dir := t.TempDir()
	for name, data := range map[string][]byte{"ca.pem": a.PEM, "cert.pem": cert, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := listenTCP(t, "127.0.0.1:0")
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return &secure{addr: "tls://localhost:" + port, port: port, file: filepath.Join(dir, "received.ipfix"),
		args: append([]string{"s_server", "-quiet", "-accept", "127.0.0.1:" + port, "-cert", filepath.Join(dir, "cert.pem"),
			"-key", filepath.Join(dir, "key.pem"), "-CAfile", filepath.Join(dir, "ca.pem")}, args...)}
}

// start starts the collector and waits until it listens. kill ends it, with what it has not read.
func (s *secure) start(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(s.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ctx, kill := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "openssl", s.args...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	stdin, err := cmd.StdinPipe() // s_server ends with its standard input
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	s.kill = func() {
		kill()
		<-ended
		stdin.Close()
	}
	t.Cleanup(s.kill)
	for !listensTCP(t, s.port) {
		select {
		case <-ended:
			t.Fatalf("openssl s_server does not listen: %s", &stderr)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// listensTCP reports whether somebody listens on a TCP port of 127.0.0.1: to connect would be a session.
func listensTCP(t *testing.T, port string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	const listening = " 0A "
	return strings.Contains(string(table), " 0100007F:"+strings.ToUpper(strconv.FormatInt(1<<16|int64(n), 16)[1:])+
		" 00000000:0000"+listening)
}

// flows returns the records of flows that ipfixDump finds in the file.
func (s *secure) flows(t *testing.T) (list []collect.Record) {
	t.Helper()
	got, out, err := collect.IPFIXDump(s.file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.ToLower(out), "warning") {
		t.Errorf("ipfixDump warns:\n%s", out)
	}
	return slices.DeleteFunc(got, func(m collect.Record) bool { return m["protocolIdentifier"] == "" })
}

// received waits until the file has size octets.
func (s *secure) received(t *testing.T, size uint64) {
	t.Helper()
	for {
		info, err := os.Stat(s.file)
		if err == nil && uint64(info.Size()) >= size {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("test ended")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// credentials are what tests of TLS need, as files.
func credentials(t *testing.T, a *certtest.Authority) TLS {
	t.Helper()
	_, cert, key := a.Pair(t, "client", time.Hour)
	return TLS{CA: certtest.Write(t, "ca.pem", a.PEM), Cert: cert, Key: key}
}

// TestOpenSSL: each side knows the other, and ipfixDump reads what openssl has received.
func TestOpenSSL(t *testing.T) {
	ours := certtest.New(t)
	cert, key := ours.Issue(t, "server", time.Hour)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(version[1:], func(t *testing.T) {
			s := newSecure(t, ours, cert, key, version, "-Verify", "1", "-verify_return_error")
			s.start(t)
			recs := collected()
			e := newExporter(t, Config{Address: s.addr, TLS: credentials(t, ours), Records: "both"})
			write(t, e, recs)
			if err := e.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.received(t, e.Stats().Bytes)
			same(t, wanted(recs, registered()), s.flows(t))
		})
	}
}

// TestOpenSSLRefusals: no record counts as delivered to a collector that one side or the other refuses.
func TestOpenSSLRefusals(t *testing.T) {
	ours, others := certtest.New(t), certtest.New(t)
	cert, key := ours.Issue(t, "server", time.Hour)
	expired, expiredKey := ours.Issue(t, "server", -time.Hour)
	known, strange := credentials(t, ours), credentials(t, others)
	tests := []struct {
		name      string
		cert, key []byte
		args      []string
		client    TLS
		want      string
	}{
		{"expired", expired, expiredKey, nil, TLS{CA: known.CA}, "certificate has expired"},
		{"unknown authority", cert, key, nil, TLS{CA: strange.CA}, "certificate signed by unknown authority"},
		{"another name", cert, key, nil, TLS{CA: known.CA, ServerName: "other.example"}, "not other.example"},
		{"no client certificate", cert, key, []string{"-Verify", "1", "-verify_return_error", "-tls1_3"}, TLS{CA: known.CA},
			"certificate required"},
		{"no client certificate, TLS 1.2", cert, key, []string{"-Verify", "1", "-verify_return_error", "-tls1_2"},
			TLS{CA: known.CA}, "tls: "},
		{"client of another authority", cert, key, []string{"-Verify", "1", "-verify_return_error"},
			TLS{CA: known.CA, Cert: strange.Cert, Key: strange.Key}, "tls: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSecure(t, ours, tt.cert, tt.key, tt.args...)
			s.start(t)
			e := newExporter(t, Config{Address: s.addr, TLS: tt.client})
			n, err := e.Write(t.Context(), numbered(1, 1000))
			if n != 0 || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Write returned %d, %v; want 0 and an error with %q", n, err, tt.want)
			}
		})
	}
}

// TestOpenSSLComesAndGoes: the collector starts late, is killed in mid-stream and starts again. What is missing in the
// end was acknowledged by its host and not read: it lies together, and ends where the session ended.
func TestOpenSSLComesAndGoes(t *testing.T) {
	ours := certtest.New(t)
	cert, key := ours.Issue(t, "server", time.Hour)
	s := newSecure(t, ours, cert, key, "-Verify", "1", "-verify_return_error")
	e := newExporter(t, Config{Address: s.addr, TLS: credentials(t, ours)})
	if n, err := e.Write(t.Context(), numbered(1, 100)); n != 0 || err == nil {
		t.Fatalf("nobody listens, and Write returned %d, %v", n, err)
	}
	s.start(t)
	const total, batch, cut = 40_000, 200, 20_000
	recs := numbered(1, total)
	for n := 0; n < total; {
		k, err := e.Write(t.Context(), recs[n:min(total, n+batch)])
		if n += k; err != nil {
			time.Sleep(10 * time.Millisecond)
		}
		if n >= cut && n-k < cut {
			s.kill()
			if err := os.Rename(s.file, s.file+".1"); err != nil {
				t.Fatal(err)
			}
			s.start(t)
		}
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := e.Stats().Sessions; got != 2 {
		t.Fatalf("%d sessions, want 2", got)
	}
	before, after := ids(t, s.file+".1"), []int(nil)
	for len(after) == 0 || after[len(after)-1] != total {
		select {
		case <-t.Context().Done():
			t.Fatal("test ended")
		case <-time.After(50 * time.Millisecond):
		}
		after = ids(t, s.file)
	}
	if !slices.Equal(before, numbers(1, len(before))) {
		t.Error("the first session has other records than the first")
	}
	if first := after[0]; !slices.Equal(after, numbers(first, total+1-first)) {
		t.Error("the second session has other records than the last")
	}
	t.Logf("%d records before, %d after; missing %d, sent again %d", len(before), len(after),
		max(0, total-len(before)-len(after)), e.Stats().Resent)
}

// ids returns the flow ids in a file of messages, of which the last may be torn.
func ids(t *testing.T, name string) []int {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	c := newReceived(t)
	c.quick = true
	c.read(io.NopCloser(bytes.NewReader(data)), name)
	return c.peek().flows()
}
