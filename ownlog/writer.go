package ownlog

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPending bounds the lines that wait for a destination that nobody reads: some thousand lines.
	maxPending = 256 << 10

	// chunk is how much one write(2) takes at most: what pipe(7) writes in one piece (PIPE_BUF), so that the lines of
	// another process that shares the pipe do not tear ours.
	chunk = 4096
)

// writer passes lines to a destination from a goroutine of its own. add never waits: when too many lines wait, it drops
// the line. The drops are counted, and told of in their place as soon as the destination takes lines again.
type writer struct {
	out     io.Writer
	notice  func(lines uint64) []byte // a line that says how many were dropped
	dropped atomic.Uint64

	mu      sync.Mutex
	pending []byte // whole lines
	busy    bool   // the goroutine has lines in its hands
	closed  bool

	droppedBehind uint64 // lines that were dropped because pending was full

	progress chan struct{} // closed at each step of the goroutine

	ready chan struct{} // holds a token when there is something to do
}

func newWriter(out io.Writer, notice func(uint64) []byte) *writer {
	w := &writer{out: out, notice: notice, progress: make(chan struct{}), ready: make(chan struct{}, 1)}
	go w.run()
	return w
}

// add queues a line, or drops it.
func (w *writer) add(line []byte) {
	w.mu.Lock()
	switch {
	case w.closed:
		w.dropped.Add(1)
	case w.droppedBehind > 0 || len(w.pending)+len(line) > maxPending:
		// A short line does not pass where a long one did not: the notice stands where lines are missing.
		w.droppedBehind++
		w.dropped.Add(1)
	default:
		w.pending = append(w.pending, line...)
	}
	w.mu.Unlock()
	w.wake()
}

func (w *writer) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// run writes until the writer is closed and nothing waits any more.
func (w *writer) run() {
	var lines []byte
	var untold uint64 // dropped lines that no notice has told of
	for range w.ready {
		for {
			var dropped uint64
			var state state
			if lines, dropped, state = w.take(lines[:0]); state == ended {
				return
			} else if state == idle {
				break
			}
			failed := w.write(lines)
			w.dropped.Add(failed)
			if untold += dropped + failed; untold > 0 && w.write(w.notice(untold)) == 0 {
				untold = 0
			}
		}
	}
}

// state is what take finds.
type state int

const (
	busy  state = iota // there are lines
	idle               // there are none
	ended              // there are none, and there will be none
)

// take exchanges buf for the lines that wait, and says how many were dropped behind them.
func (w *writer) take(buf []byte) (lines []byte, dropped uint64, s state) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.progress)
	w.progress = make(chan struct{})
	w.busy = len(w.pending) > 0
	switch {
	case w.busy:
		lines, dropped = w.pending, w.droppedBehind
		w.pending, w.droppedBehind = buf, 0
		return lines, dropped, busy
	case w.closed:
		return buf, 0, ended
	}
	return buf, 0, idle
}

// write writes lines, some at a time, and returns how many could not be written.
func (w *writer) write(lines []byte) (failed uint64) {
	for len(lines) > 0 {
		n := len(lines)
		if n > chunk {
			if n = bytes.LastIndexByte(lines[:chunk], '\n') + 1; n == 0 { // a line longer than a chunk
				n = bytes.IndexByte(lines, '\n') + 1
			}
		}
		if _, err := w.out.Write(lines[:n]); err != nil {
			failed += uint64(bytes.Count(lines[:n], []byte{'\n'}))
		}
		lines = lines[n:]
	}
	return failed
}

// flush waits until all lines are written, for the time within at most.
func (w *writer) flush(within time.Duration) {
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	for {
		w.mu.Lock()
		done, progress := len(w.pending) == 0 && !w.busy, w.progress
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-progress:
		case <-timeout.C:
			return
		}
	}
}

// close ends the goroutine when it has written what waits. It does not wait for that: flush does.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.wake()
}
