//go:build !small

package live

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/monitor"
)

// look asks for the page until something has been counted.
func (f *fixture) look(t *testing.T, url string) (h http.Header, body string) {
	t.Helper()
	until(t, "the page shows a talker", func() bool {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s, %v", resp.Status, err)
		}
		h, body = resp.Header, string(b)
		return strings.Contains(body, "203.0.113.1")
	})
	return h, body
}

// hostileNames names all that it can with bytes that break pages.
func hostileNames(f *fixture) {
	const evil = `"><script>alert(1)</script><img src=http://192.0.2.1/>` + hostile
	f.snapshot.Host, f.snapshot.Version, f.snapshot.Outputs[0].Name = evil, evil, "jsonl:"+evil
	f.snapshot.Outputs[1].Error = evil
	f.snapshot.Reasons = []string{evil}
	f.snapshot.Kernel.Error = evil
	r := ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 2000, 100)
	r.Extra = &flow.Extra{Helper: flow.NameFrom(hostile)}
	f.table = []flow.Record{r}
}

// The page has in it what was meant to be, loads nothing, and says nothing of subscribers.
func TestPageIsSafe(t *testing.T) {
	f := newFixture(t, hostileNames)
	header, body := f.look(t, f.serve(t))
	policy := header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", hashOf(pageJS), hashOf(pageCSS)} {
		if !strings.Contains(policy, want) {
			t.Errorf("policy %q lacks %q", policy, want)
		}
	}
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	scripts := 0
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.Data {
		case "script", "style":
			if want := map[string]string{"script": pageJS, "style": pageCSS}[n.Data]; n.FirstChild.Data != want {
				t.Errorf("a foreign %s: %s", n.Data, n.FirstChild.Data)
			}
			scripts++
		case "img", "iframe", "object", "embed", "base", "form":
			t.Errorf("there is a <%s>", n.Data)
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "src" {
				t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
			}
			if a.Key == "href" && !regexp.MustCompile(`^(data:,|metrics|healthz|readyz)$`).MatchString(a.Val) {
				t.Errorf("<%s> refers to %q", n.Data, a.Val)
			}
		}
	}
	if scripts != 2 {
		t.Errorf("%d scripts and styles", scripts)
	}
	if i := strings.IndexFunc(body, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r == 0xfffd }); i >= 0 {
		t.Errorf("a foreign byte at %q", body[max(i-20, 0):i+5])
	}
	for _, secret := range []string{"10.0.0.1", "198.51.100.1"} {
		if strings.Contains(body, secret) {
			t.Errorf("the page shows %s, which is the socket's to show", secret)
		}
	}
}

// A browser finds nothing to complain of, runs the script, and brings the page up to date with it.
func TestPageInChromium(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs chromium (Debian package chromium)")
	}
	var asked atomic.Uint64 // each page that is asked for shows one event more
	f := newFixture(t, hostileNames, func(f *fixture) {
		snapshot := f.history.snapshot
		f.history.snapshot = func() monitor.Snapshot {
			s := snapshot()
			s.Reader.Events = map[string]uint64{"destroy": asked.Load()}
			return s
		}
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		f.Page(w, r)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
		"--enable-logging=stderr", "--virtual-time-budget=7000", "--dump-dom", server.URL)
	var dom, log strings.Builder
	cmd.Stdout, cmd.Stderr = &dom, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "CONSOLE") {
			t.Errorf("the browser says: %s", line)
		}
	}
	shown := regexp.MustCompile(`data-metric="events" data-value="(\d+)"`).FindStringSubmatch(dom.String())
	if shown == nil || shown[1] == "0" || shown[1] == "1" {
		t.Errorf("the page was not brought up to date: %v, asked for %d times", shown, asked.Load())
	}
	if !regexp.MustCompile(`<button id="pause" type="button" aria-pressed="false">`).MatchString(dom.String()) {
		t.Error("the script has not run")
	}
}

// The page answers while its daemon ends.
func TestPageOfADaemonThatEnds(t *testing.T) {
	f := newFixture(t)
	f.Close()
	answer, err := http.Get(f.serve(t))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Error(answer.Status)
	}
}

// serve has the page answer over TCP.
func (f *fixture) serve(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", f.Page)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}
