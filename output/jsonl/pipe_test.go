package jsonl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/format"
)

// readFIFO opens a FIFO for reading, and reads nothing.
func readFIFO(t testing.TB, path string) *os.File {
	t.Helper()
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func makeFIFO(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// readLines reads n lines, byte by byte, so that no more is taken out of the pipe.
func readLines(t testing.TB, r io.Reader, n int) (got []byte) {
	t.Helper()
	for b := make([]byte, 1); n > 0; {
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		got = append(got, b[0])
		if b[0] == '\n' {
			n--
		}
	}
	return got
}

// fill writes more than the pipe holds, which nobody reads, until the time for that is over, and returns how many records
// were written. The last line is torn.
func fill(t testing.TB, f *File) (n int) {
	t.Helper()
	enough := errors.New("enough")
	filling, cancel := context.WithCancelCause(ctx)
	go func() {
		for full := false; !full; {
			_ = f.current.pipe.conn.Control(func(fd uintptr) {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
				n, err := unix.Poll(fds, 0)
				full = err == nil && n == 0
			})
		}
		cancel(enough)
	}()
	n, err := f.Write(filling, records(0, 1000))
	if !errors.Is(err, enough) || len(f.current.rest) == 0 {
		t.Fatalf("Write = %d, %v; %d bytes of rest, want a torn line", n, err, len(f.current.rest))
	}
	return n
}

// TestFIFOWithoutReader: what nobody reads is not delivered, before the first reader and after the last one.
func TestFIFOWithoutReader(t *testing.T) {
	cfg := Config{Path: makeFIFO(t)}
	enc, err := cfg.Encoder(format.Options{Host: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg, enc, nil); !errors.Is(err, errNoReader) {
		t.Fatalf("New: %v, want %v", err, errNoReader)
	}
	r := readFIFO(t, cfg.Path)
	f := newFile(t, cfg, nil)
	write(t, f, records(0, 20))
	if n := f.Acknowledged(); n != 0 {
		t.Errorf("%d records have arrived, and nobody has read any", n)
	}
	got := readLines(t, r, 3)
	if n := f.Acknowledged(); n != 0 {
		t.Errorf("%d records have arrived of a write that is not read to its end", n)
	}
	r.Close()
	for range 2 {
		if n, err := f.Write(ctx, records(20, 20)); n != 0 || !errors.Is(err, errNoReader) {
			t.Fatalf("Write = %d, %v, want %v", n, err, errNoReader)
		}
	}
	// The next reader gets what the pipe still holds, then the rest.
	r = readFIFO(t, cfg.Path)
	write(t, f, records(20, 20))
	got = append(got, readLines(t, r, 17)...)
	if n := f.Acknowledged(); n != 20 {
		t.Errorf("%d records have arrived, want 20", n)
	}
	got = append(got, readLines(t, r, 20)...)
	wantIDs(t, upTo(40), parseIDs(t, got))
	if n := f.Acknowledged(); n != 40 {
		t.Errorf("%d records have arrived, want 40", n)
	}
	if err := f.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	if n := f.Acknowledged(); n != 40 {
		t.Errorf("%d records have arrived after Close, want 40", n)
	}
}

// TestFIFOReaderDies has the reader take a part of a line and go: the next one begins with a whole line.
func TestFIFOReaderDies(t *testing.T) {
	f, r := (*File)(nil), (*os.File)(nil)
	cfg := Config{Path: makeFIFO(t)}
	r = readFIFO(t, cfg.Path)
	f = newFile(t, cfg, nil)
	n := fill(t, f)
	for b := make([]byte, 64<<10); ; {
		if _, err := r.Read(b); errors.Is(err, unix.EAGAIN) || err == io.EOF {
			break
		} else if unread, uerr := f.current.pipe.unread(); uerr != nil || unread == 0 {
			break
		}
	}
	r.Close()
	if n, err := f.Write(ctx, records(n, 1)); n != 0 || !errors.Is(err, errNoReader) {
		t.Fatalf("Write = %d, %v, want %v", n, err, errNoReader)
	}
	r = readFIFO(t, cfg.Path)
	write(t, f, records(n, 5))
	wantIDs(t, []int{n, n + 1, n + 2, n + 3, n + 4}, parseIDs(t, readLines(t, r, 5)))
}

// TestFIFO has nobody read for a while: ctx ends the wait, and every line that is read later is whole.
func TestFIFO(t *testing.T) {
	path := makeFIFO(t)
	r := readFIFO(t, path)
	f := newFile(t, Config{Path: path}, nil)
	recs := records(0, 1000)
	n := fill(t, f)

	// Now one reads.
	var got bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = got.ReadFrom(r)
	}()
	write(t, f, recs[n:])
	if err := f.Reopen(); err != nil {
		t.Errorf("Reopen: %v", err)
	}
	if err := f.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	if got, want := f.Acknowledged(), uint64(len(recs)); got != want {
		t.Errorf("%d records have arrived when it is closed, want %d", got, want)
	}
	<-done
	all := parseIDs(t, got.Bytes())
	wantIDs(t, upTo(len(recs)), slices.Compact(all)) // a line that was torn comes twice
	if len(all) > len(recs)+1 {
		t.Errorf("%d lines for %d records", len(all), len(recs))
	}
}

// TestFIFOTail stops in the middle of a line, and closes before anything else is written.
func TestFIFOTail(t *testing.T) {
	path := makeFIFO(t)
	r := readFIFO(t, path)
	f := newFile(t, Config{Path: path}, nil)
	n := fill(t, f)
	var got bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = got.ReadFrom(r)
	}()
	if err := f.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	<-done
	wantIDs(t, upTo(n+1), parseIDs(t, got.Bytes()))
}

// TestFIFOClose: the end waits no longer than it may for a reader that reads nothing, and for none at all.
func TestFIFOClose(t *testing.T) {
	for _, reader := range []bool{true, false} {
		path := makeFIFO(t)
		r := readFIFO(t, path)
		f := newFile(t, Config{Path: path}, nil)
		write(t, f, records(0, 5))
		closing, cancel := context.WithCancel(ctx)
		if reader {
			cancel()
		} else {
			r.Close()
		}
		if err := f.Close(closing); err != nil {
			t.Errorf("Close: %v", err)
		}
		if n := f.Acknowledged(); n != 0 {
			t.Errorf("%d records have arrived", n)
		}
		cancel()
	}
}

// TestStdoutPipe: what sits in the pipe behind standard output has not arrived either.
func TestStdoutPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	stdout := os.Stdout
	os.Stdout = w
	defer func() { os.Stdout = stdout }()
	f := newFile(t, Config{Path: Stdout}, nil)
	write(t, f, records(0, 5))
	write(t, f, records(5, 5))
	if n := f.Acknowledged(); n != 0 {
		t.Errorf("%d records have arrived", n)
	}
	readLines(t, r, 7)
	if n := f.Acknowledged(); n != 5 {
		t.Errorf("%d records have arrived, want the 5 of the first write", n)
	}
	readLines(t, r, 3)
	if n := f.Acknowledged(); n != 10 {
		t.Errorf("%d records have arrived, want 10", n)
	}
}
