package ownlog

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// logMany logs lines that are too many for a pipe and the buffer together, none the sum of others.
func logMany(log *zap.Logger, lines int) {
	padding := strings.Repeat("x", 200)
	for i := range lines {
		log.Info(fmt.Sprintf("line %d", i), zap.String("padding", padding))
	}
}

// Nobody reads the pipe: those who log do not wait, nor does the end. Once somebody reads, the lines that were kept
// come in their order, and behind them how many were not.
func TestPipeThatNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log, own := New(Config{Level: "info", Format: "console"}, w)
	const lines = 5000
	logged := make(chan struct{})
	go func() {
		logMany(log, lines)
		close(logged)
	}()
	select {
	case <-logged:
	case <-time.After(20 * time.Second):
		t.Fatal("who logs waits for the pipe")
	}
	dropped := own.Dropped()
	if dropped == 0 || dropped >= lines {
		t.Fatalf("%d of %d lines were dropped", dropped, lines)
	}
	closed := make(chan struct{})
	go func() {
		own.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("the end waits for the pipe")
	}
	next, told := uint64(0), ""
	for scan := bufio.NewScanner(r); told == "" && scan.Scan(); {
		if line := scan.Text(); strings.Contains(line, "\tWARN\t") {
			told = line
		} else if want := fmt.Sprintf("line %d\t", next); !strings.Contains(line, want) {
			t.Fatalf("line %q, want %q", line, want)
		} else {
			next++
		}
	}
	if want := fmt.Sprintf(`{"lines": %d}`, dropped); !strings.HasSuffix(told, want) || next+dropped != lines {
		t.Errorf("%d lines, then %q; %d were dropped", next, told, dropped)
	}
	w.Close()
}

// A slow reader gets everything that fits, and afterwards lines come as before.
func TestAfterADrop(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log, own := New(Config{Level: "info", Format: "console"}, w)
	logMany(log, 5000)
	seen := make(chan string, 10000)
	go func() {
		for scan := bufio.NewScanner(r); scan.Scan(); {
			seen <- scan.Text()
		}
		close(seen)
	}()
	await := func(what string) {
		t.Helper()
		for timeout := time.After(20 * time.Second); ; {
			select {
			case line := <-seen:
				if strings.Contains(line, what) {
					return
				}
			case <-timeout:
				t.Fatalf("no line %q", what)
			}
		}
	}
	await("were dropped")
	before := own.Dropped()
	log.Info("afterwards")
	await("afterwards")
	if after := own.Dropped(); after != before {
		t.Errorf("%d lines were dropped while the pipe was read", after-before)
	}
	own.Close()
	w.Close()
}

// failing refuses every write until it is mended.
type failing struct {
	lockedBuffer
	broken bool
}

func (f *failing) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return 0, errors.New("broken pipe")
	}
	return f.buf.Write(p)
}

func (f *failing) set(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

// Lines that the destination refuses count as dropped, and the next line that it takes is followed by the notice.
func TestRefusedWrites(t *testing.T) {
	out := &failing{broken: true}
	log, own := New(Config{Level: "info", Format: "json"}, out)
	log.Info("one")
	own.out.flush(time.Minute)
	log.Info("two")
	own.out.flush(time.Minute)
	if n := own.Dropped(); n != 2 {
		t.Errorf("%d dropped, want 2", n)
	}
	out.set(false)
	log.Info("three")
	own.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"three"`) || !strings.HasSuffix(lines[1], `"lines":2}`) {
		t.Errorf("got %q", lines)
	}
	log.Info("behind the end")
	if n := own.Dropped(); n != 3 {
		t.Errorf("%d dropped, want 3: a line behind the end goes nowhere", n)
	}
}

// No line is torn at a chunk's end, however long it is.
func TestChunks(t *testing.T) {
	var lines, writes []string
	for _, n := range []int{1, 4000, 100, 4095, 4096, 10000, 3, 70000, 2} {
		lines = append(lines, strings.Repeat("y", n)+"\n")
	}
	w := &writer{out: writerFunc(func(p []byte) { writes = append(writes, string(p)) })}
	if failed := w.write([]byte(strings.Join(lines, ""))); failed != 0 {
		t.Errorf("%d lines failed", failed)
	}
	if strings.Join(writes, "") != strings.Join(lines, "") {
		t.Error("something is missing")
	}
	for _, p := range writes {
		if !strings.HasSuffix(p, "\n") || len(p) > chunk && strings.Count(p, "\n") > 1 {
			t.Errorf("a write of %d bytes ends in %q", len(p), p[len(p)-1:])
		}
	}
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// Complain prints before the process ends, and does not wait for a pipe that nobody reads.
func TestComplainToFullPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	done := make(chan struct{})
	go func() {
		Complain(w, strings.Repeat("z", 1<<20))
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the end waits for the pipe")
	}
}
