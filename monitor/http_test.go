//go:build !small

package monitor

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

func TestHealth(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name           string
		change         func(*Snapshot)
		healthz, ready int
		want           string
	}{
		{"well", func(*Snapshot) {}, 200, 200, "ok\n"},
		{"stuck", func(s *Snapshot) { s.Reader.Round = now.Add(-11 * time.Second) }, 503, 503,
			"down\nreader: no progress for 11s\n"},
		{"stuck and more", func(s *Snapshot) {
			s.Reader.Round = now.Add(-time.Minute)
			s.Kernel.Error = "operation not permitted"
		}, 503, 503, "down\nreader: no progress for 1m0s\nkernel: operation not permitted\n"},
		{"ending", func(s *Snapshot) { s.Stopping, s.Reader.Round = true, now.Add(-time.Minute) }, 200, 503,
			"down\nending: what is left is delivered\n"},
		{"failing", func(s *Snapshot) {
			o := &s.Outputs[0]
			o.Failing, o.Since, o.Error, o.OldestAge = true, now.Add(-90*time.Second), "refused\xff", 90
		}, 200, 200, "degraded\njsonl:/x: failing for 1m30s: refused\uFFFD\n"},
		{"late, queue and spool nearly full", func(s *Snapshot) {
			o := &s.Outputs[0]
			o.OldestAge, o.Used, o.Spool = 61, 90, &Spool{Bytes: 85, Max: 100}
		}, 200, 200, "degraded\njsonl:/x: 1m1s late\njsonl:/x: queue 90 % full\njsonl:/x: spool 85 % full\n"},
		{"just not", func(s *Snapshot) {
			o := &s.Outputs[0]
			o.OldestAge, o.Used, o.Spool = 60, 80, &Spool{Bytes: 80, Max: 100}
			s.Kernel.Entries = 80
		}, 200, 200, "ok\n"},
		{"gaps", func(s *Snapshot) {
			s.Gaps = []Gap{{Cause: "guard", Gaps: 1, Lost: 5, Last: now.Add(-time.Minute)},
				{Cause: "overrun", Gaps: 1, Lost: 5, Last: now.Add(-time.Hour)}, {Cause: "downtime"}}
			s.Outputs[0].Gaps = []Gap{{Cause: "queue_full", Gaps: 2, Lost: 7, Last: now.Add(-time.Second)}}
		}, 200, 200, "degraded\ngap 1m0s ago: guard, 5 records lost for it since the start\n" +
			"jsonl:/x: gap 1s ago: queue_full, 7 records lost for it since the start\n"},
		{"table", func(s *Snapshot) { s.Kernel.Entries = 81 }, 200, 200, "degraded\nkernel: table 81 % full, 81 of 100\n"},
		{"table without a limit", func(s *Snapshot) { s.Kernel.Entries, s.Kernel.Limit = 1000, 0 }, 200, 200, "ok\n"},
		{"subscribers", func(s *Snapshot) {
			s.Subscribers = &Subscribers{Sources: []Source{{Name: "kea", Age: 301, Error: "no such file"}, {Name: "dnsmasq", Age: 300, Error: "no such file"},
				{Name: "csv", Age: 360}}}
		}, 200, 200, "degraded\nsubscribers: kea was read 5m1s ago, and records name whom it named then: no such file\n" +
			"subscribers: csv was read 6m0s ago, and records name whom it named then: its disk does not answer\n"},
		{"reload failed", func(s *Snapshot) { s.Reloads = Reloads{OK: 1, Failed: 1, Last: now.Add(-time.Minute)} }, 200, 200,
			"degraded\nconfiguration: the last reload failed, 1m0s ago; the old one stays\n"},
		{"reload failed before", func(s *Snapshot) { s.Reloads = Reloads{OK: 1, Failed: 1, LastOK: true} }, 200, 200, "ok\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Snapshot{Time: now, Reader: Reader{Round: now.Add(-time.Second)}, Kernel: Kernel{Entries: 10, Limit: 100},
				Outputs: []Output{{Name: "jsonl:/x", Used: 1, Max: 100}}}
			tt.change(&s)
			s.Judge()
			mux := NewMux(func() Snapshot { return s })
			for path, status := range map[string]int{"/healthz": tt.healthz, "/readyz": tt.ready} {
				w := httptest.NewRecorder()
				mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
				if w.Code != status {
					t.Errorf("%s: status %d, want %d", path, w.Code, status)
				}
				if diff := cmp.Diff(tt.want, w.Body.String()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", path, diff)
				}
			}
		})
	}
}

// serverAt returns a server of a mux for address, and what it logs.
func serverAt(t *testing.T, c Config) (*Server, *observer.ObservedLogs) {
	core, logs := observer.New(zap.InfoLevel)
	s := NewServer(NewMux(func() Snapshot { s := full(); return s }), zap.New(core))
	s.Configure(c)
	t.Cleanup(s.Close)
	return s, logs
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute in vain until %s", what)
		}
	}
}

// get returns the status, 0 if there is no answer.
func get(c *http.Client, url string) int {
	r, err := c.Get(url)
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	_, _ = io.Copy(io.Discard, r.Body)
	return r.StatusCode
}

// A server whose address is taken says so once, and serves when it is free; it moves where it is told to, and ends.
func TestServer(t *testing.T) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	s, logs := serverAt(t, Config{Listen: address})
	eventually(t, "it complains", func() bool { return logs.FilterLevelExact(zap.ErrorLevel).Len() == 1 })
	if e := logs.All()[0]; e.ContextMap()["listen"] != address || !strings.Contains(e.ContextMap()["error"].(string), "address already in use") {
		t.Errorf("it complains of something else: %v", e)
	}
	taken.Close()
	eventually(t, "it serves", func() bool { return get(client, "http://"+address+"/metrics") == 200 })
	if n := logs.FilterLevelExact(zap.ErrorLevel).Len(); n != 1 {
		t.Errorf("it has complained %d times, want once", n)
	}

	next := freeAddress(t)
	s.Configure(Config{Listen: next})
	eventually(t, "it serves elsewhere", func() bool { return get(client, "http://"+next+"/healthz") != 0 })
	if status := get(client, "http://"+address+"/metrics"); status != 0 {
		t.Errorf("where it was, it still answers %d", status)
	}
	for path, want := range map[string]int{"/": 404, "/metrics/x": 404} {
		if status := get(client, "http://"+next+path); status != want {
			t.Errorf("%s: status %d, want %d", path, status, want)
		}
	}
	r, err := client.Post("http://"+next+"/metrics", "text/plain", strings.NewReader("x"))
	if err != nil || r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v, %v, want 405", r, err)
	}
	s.Close()
	if status := get(client, "http://"+next+"/metrics"); status != 0 {
		t.Errorf("after Close it answers %d", status)
	}
}

// However many connections idle, say nothing, or do not read their answer, a scrape and a health check are answered; in
// the clear and with TLS.
func TestCrowd(t *testing.T) {
	dir := t.TempDir()
	pool := writeCertificate(t, dir)
	file := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(file, []byte("tls_server_config: {cert_file: server.pem, key_file: server.key}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secure := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
	for _, scheme := range []string{"http", "https"} {
		c := Config{Listen: freeAddress(t)}
		if scheme == "https" {
			c.WebConfig = file
		}
		serverAt(t, c)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: secure}}
		eventually(t, "it serves", func() bool { return get(client, scheme+"://"+c.Listen+"/healthz") != 0 })
		for name, request := range map[string]string{
			"silent": "", "half a request": "GET /healthz HTTP/1.1\r\nHost: x\r\n", "idle": "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			t.Run(scheme+" "+name, func(t *testing.T) {
				for range 3 * maxConns {
					var conn net.Conn
					var err error
					if conn, err = net.Dial("tcp", c.Listen); err == nil && scheme == "https" && request != "" {
						conn = tls.Client(conn, secure)
					}
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					if _, err := io.WriteString(conn, request); err != nil {
						t.Fatal(err)
					}
					if name == "idle" { // until it has had its answer
						if _, err := io.ReadFull(conn, make([]byte, len("HTTP/1.1 200 OK"))); err != nil {
							t.Fatal(err)
						}
					}
				}
				for _, path := range []string{"/metrics", "/healthz"} {
					if status := get(client, scheme+"://"+c.Listen+path); status == 0 {
						t.Errorf("%s is not answered", path)
					}
				}
			})
		}
	}
}

// Who leaves for a new connection: the one that has been idle longest, and only without such one that is busy.
func TestRoom(t *testing.T) {
	now := time.Now()
	a, b := net.Pipe()
	c, d := net.Pipe()
	r := newRoom(nil, 3)
	r.guests = map[net.Conn]guest{a: {since: now}, b: {idle: true, since: now.Add(3)}, c: {idle: true, since: now.Add(2)}, d: {since: now.Add(1)}}
	for _, want := range []net.Conn{c, b, a, d} {
		got := r.first()
		if got != want {
			t.Fatalf("%+v leaves of %+v", r.guests[got], r.guests)
		}
		delete(r.guests, got)
	}
}

// A client's header is bounded.
func TestHugeHeader(t *testing.T) {
	address := freeAddress(t)
	serverAt(t, Config{Listen: address})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(t, "it serves", func() bool { return get(client, "http://"+address+"/metrics") == 200 })
	r, err := http.NewRequest("GET", "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Huge", strings.Repeat("x", 2*maxHeader))
	answer, err := client.Do(r)
	if err != nil || answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%v, %v, want status 431", answer, err)
	}
}

// With a web configuration there is TLS, and a password; one that is wrong is not served without either.
// A file that cannot be read to its end, as on a file system that hangs, keeps neither a reload nor the end waiting.
func TestWebConfigHangs(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "web.yml")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	s, _ := serverAt(t, Config{Listen: address, WebConfig: fifo})
	writer, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits until it is read
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { writer.Close() })
	s.Configure(Config{Listen: address})
	eventually(t, "it serves with another configuration", func() bool { return get(http.DefaultClient, "http://"+address+"/metrics") == http.StatusOK })
	s.Close()
}

func TestWebConfig(t *testing.T) {
	dir := t.TempDir()
	pool := writeCertificate(t, dir)
	file := filepath.Join(dir, "web.yml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("tls_server_config: {cert_file: none.pem, key_file: none.pem}\n")
	address := freeAddress(t)
	s, logs := serverAt(t, Config{Listen: address, WebConfig: file})
	eventually(t, "it complains", func() bool { return logs.FilterLevelExact(zap.ErrorLevel).Len() > 0 })
	if text := fmt.Sprint(logs.All()[0].ContextMap()["error"]); !strings.Contains(text, "none.pem") {
		t.Errorf("it complains of something else: %s", text)
	}
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if status := get(plain, "http://"+address+"/metrics"); status != 0 {
		t.Fatalf("it serves without its certificate: %d", status)
	}

	// The hash is that of "secret": bcrypt of cost 4.
	write("tls_server_config: {cert_file: server.pem, key_file: server.key}\n" +
		"basic_auth_users: {prometheus: $2a$04$MPRdoeBgSpU6gOekSvCDzONoWtpGl5m35nE9D/a6pou56gb/oEjbW}\n")
	s.Configure(Config{Listen: address, WebConfig: file}) // as a reload does, instead of the next try
	secure := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	eventually(t, "it serves with TLS", func() bool { return get(secure, "https://"+address+"/metrics") != 0 })
	for _, tt := range []struct {
		client *http.Client
		url    string
		want   int
	}{
		{secure, "https://" + address + "/metrics", 401},
		{secure, "https://prometheus:wrong@" + address + "/metrics", 401},
		{secure, "https://prometheus:secret@" + address + "/metrics", 200},
		{secure, "https://" + address + "/healthz", 401},
		{plain, "http://" + address + "/metrics", 400},
	} {
		if status := get(tt.client, tt.url); status != tt.want {
			t.Errorf("%s: status %d, want %d", tt.url, status, tt.want)
		}
	}
}

// writeCertificate writes server.pem and server.key for 127.0.0.1, and returns who trusts them.
func writeCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	ca := certtest.New(t)
	cert, key := ca.Issue(t, "server", time.Hour)
	for name, text := range map[string][]byte{"server.pem": cert, "server.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca.Pool()
}

func TestCheck(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		name         string
		c            Config
		check, reach string // parts of what they say
	}{
		{"free", Config{Listen: freeAddress(t)}, "", ""},
		{"taken", Config{Listen: taken.Addr().String()}, "", "address already in use; that is right if ctlogd runs there"},
		{"not here", Config{Listen: "192.0.2.1:9469"}, "cannot assign requested address; set listen to an address of this host", "cannot assign"},
		{"no file", Config{Listen: freeAddress(t), WebConfig: "/nowhere/web.yml"}, "web_config: open /nowhere/web.yml: no such file", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, e := range []struct {
				got  error
				want string
			}{{tt.c.Check(t.Context()), tt.check}, {tt.c.Reach(t.Context()), tt.reach}} {
				if (e.want == "") != (e.got == nil) || e.got != nil && !strings.Contains(e.got.Error(), e.want) {
					t.Errorf("%v, want %q", e.got, e.want)
				}
			}
		})
	}
}

// A number that is not known is not told as 0.
func TestLostInWords(t *testing.T) {
	for want, g := range map[string]Gap{
		"7 records lost": {Gaps: 2, Lost: 7},
		"records lost, it is not known how many,":                     {Gaps: 1, Unknown: 1},
		"7 records lost, and more of which it is not known how many,": {Gaps: 2, Lost: 7, Unknown: 1},
	} {
		if got := g.lost(); got != want {
			t.Errorf("%+v: %q, want %q", g, got, want)
		}
	}
}

// While ctlogd serves there, the check does not call the port taken; by somebody else it does.
func TestReachOfOwnPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Listen: l.Addr().String()}
	foreign := &http.Server{Handler: http.NotFoundHandler()}
	go foreign.Serve(l)
	if err := c.Reach(t.Context()); err == nil || !strings.Contains(err.Error(), "set another port") {
		t.Errorf("a foreign server is at the port: %v", err)
	}
	foreign.Close()
	for _, listen := range []string{c.Listen, "0.0.0.0" + c.Listen[len("127.0.0.1"):]} {
		c.Listen = listen
		s := NewServer(NewMux(full), nil)
		s.Configure(c)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
				conn.Close()
				break
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		if err := c.Reach(t.Context()); err != nil {
			t.Errorf("ctlogd itself is at %s: %v", listen, err)
		}
		s.Close()
	}
}
