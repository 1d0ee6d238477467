package live

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// A tap gets what matches its words, as records or as JSON, hostile bytes and all.
func TestTap(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var helpers []string
	var lines [][]byte
	done := make(chan error, 2)
	words := []string{"nat=snat", "dst_port=443"}
	go func() {
		done <- NewClient(f.socket).Tap(ctx, words, func(r *flow.Record) bool {
			helpers = append(helpers, r.Extra.Helper.String())
			return len(helpers) < 2
		}, func() {})
	}()
	go func() {
		done <- NewClient(f.socket).TapJSON(ctx, words, func(line []byte) bool {
			lines = append(lines, bytes.Clone(line))
			return len(lines) < 2
		}, func() {})
	}()
	f.awaitTaps(t, 2)
	evil := ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 1024, 1)
	evil.Extra = &flow.Extra{Helper: flow.NameFrom(hostile)}
	f.end(ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 80, 1024, 1), evil,
		ended("10.0.0.1", "10.0.0.1", "198.51.100.1", 443, 40000, 1), evil)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if len(helpers) != 2 || helpers[0] != hostile || helpers[1] != hostile {
		t.Errorf("helpers %q", helpers)
	}
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		var got struct{ Helper string }
		if err := json.Unmarshal(line, &got); err != nil || got.Helper != strings.ToValidUTF8(hostile, "\ufffd") {
			t.Errorf("%q: helper %q, %v", line, got.Helper, err)
		}
		if i := bytes.IndexFunc(bytes.TrimSuffix(line, []byte("\n")), func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
			t.Errorf("%q has %q", line, line[i:])
		}
	}
	f.awaitTaps(t, 0)
}

// A tap that does not read holds nobody up, and when it reads again it is told of every record that it missed.
func TestTapThatDoesNotRead(t *testing.T) {
	f := newFixture(t)
	c, err := net.Dial("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /tap HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	f.awaitTaps(t, 1)
	const batches = 400
	recs := make([]flow.Record, 256)
	for i := range recs {
		recs[i] = ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 1024, 1)
	}
	for range batches {
		f.end(recs...)
	}
	shown, missed := 0, uint64(0)
	answer, body := bytes.Buffer{}, make([]byte, 64<<10)
	for missed == 0 || shown+int(missed) < batches*len(recs) {
		n, err := c.Read(body)
		if err != nil {
			t.Fatal(err)
		}
		answer.Write(body[:n])
		for {
			line, err := answer.ReadBytes('\n')
			if err != nil {
				answer.Write(line)
				break
			}
			var r struct {
				Event, Output, Cause string
				Lost                 uint64
			}
			switch json.Unmarshal(line, &r); {
			case r.Event == "gap" && r.Output == TapName && r.Cause == "queue_full":
				missed += r.Lost
			case r.Event == "destroy":
				shown++
			case r.Event != "":
				t.Errorf("a record that nobody made: %s", line)
			}
		}
	}
	t.Logf("%d records shown, %d missed", shown, missed)
}

func TestTapRefusals(t *testing.T) {
	f := newFixture(t)
	err := NewClient(f.socket).Tap(t.Context(), []string{"nat=full"}, nil, nil)
	want := f.socket + `: the daemon refuses: "nat=full": unknown NAT type "full"; use none, snat, dnat or both`
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	for range maxTaps {
		go func() { _ = NewClient(f.socket).Tap(ctx, nil, func(*flow.Record) bool { return true }, func() {}) }()
	}
	f.awaitTaps(t, maxTaps)
	err = NewClient(f.socket).Tap(t.Context(), nil, nil, nil)
	if want := f.socket + ": the daemon refuses: 16 taps are open, which is the most; end one"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	cancel()
	f.awaitTaps(t, 0)
}

// The daemon that ends lets its taps have what came, and goes without those that do not read.
func TestTapEnds(t *testing.T) {
	f := newFixture(t)
	ended1 := ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 1024, 1)
	got := 0
	done := make(chan error)
	go func() {
		done <- NewClient(f.socket).Tap(t.Context(), nil, func(*flow.Record) bool { got++; return true }, func() {})
	}()
	f.awaitTaps(t, 1)
	f.end(ended1, ended1, ended1)
	f.Close()
	err := <-done
	if want := "no ctlogd answers any more: the one behind " + f.socket + " has ended"; err == nil || err.Error() != want || got != 3 {
		t.Errorf("%d records, %v; want 3, %s", got, err, want)
	}
}
