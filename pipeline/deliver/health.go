package deliver

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// hangAfter is how long a call may be out before it counts as failing.
const hangAfter = 5 * time.Second

// errHangs is the failure of a call that does not return.
var errHangs = fmt.Errorf("no answer for %v, and still waiting: the destination hangs", hangAfter)

// health is how the output has answered so far.
type health struct {
	failing      atomic.Bool // the same as err != nil, without the lock
	hasLossCause atomic.Bool // the same as lossCause != nil, without the lock

	mu        sync.Mutex
	err       error     // of the last call, nil if it succeeded or there was none yet
	since     time.Time // when it began or ceased to fail; zero if it never failed
	last      error     // the last error, also when others succeeded after it
	lastAt    time.Time
	lossCause error // what losses are put down to: the last error, until the backlog that it left is worked off
}

// note takes the outcome of a call, nil for success, and reports whether that is another than before.
func (h *health) note(err error) (changed bool) {
	if err == nil && !h.failing.Load() {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if changed = (h.err == nil) != (err == nil); changed {
		h.since = now
	}
	h.err = err
	h.failing.Store(err != nil)
	if err != nil {
		h.last, h.lastAt, h.lossCause = err, now, err
		h.hasLossCause.Store(true)
	}
	return changed
}

// remark notes an error after which the output goes on.
func (h *health) remark(err error) {
	h.mu.Lock()
	h.last, h.lastAt = err, time.Now()
	h.mu.Unlock()
}

// caughtUp says that the backlog is worked off.
func (h *health) caughtUp() {
	if !h.hasLossCause.Load() || h.failing.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.lossCause = nil
		h.hasLossCause.Store(false)
	}
}

// failingFor returns for how long the output has been failing; ok is false if it is not.
func (h *health) failingFor() (d time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.since), h.err != nil
}

// clearHang ends the failure of a call that hung and has returned.
func (h *health) clearHang() {
	if h.hangs() {
		h.note(nil)
	}
}

func (h *health) hangs() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Is(h.err, errHangs)
}

// cause returns the error that losses of now are put down to; nil if there is none.
func (h *health) cause() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lossCause
}

// status fills in the part of Status that is known here.
func (h *health) status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Status{Failing: h.err != nil, Since: h.since, ErrorAt: h.lastAt}
	if h.last != nil {
		s.Error = h.last.Error()
	}
	return s
}

// watch notices a call that does not return. Entering and leaving cost an atomic store; a timer looks at it now and then,
// and only while there are calls.
type watch struct {
	base     time.Time    // what times are counted from
	began    atomic.Int64 // when the call under way began; 0 if there is none
	armed    atomic.Bool
	timer    *time.Timer
	hangs    func(out func() bool) // called once for each call that is out for hangAfter; out says whether it still is
	reported int64                 // the call that hangs was called for; the timer's own
}

func newWatch(hangs func(out func() bool)) *watch {
	w := &watch{base: time.Now(), hangs: hangs}
	w.timer = time.AfterFunc(time.Hour, w.look)
	w.timer.Stop()
	return w
}

func (w *watch) enter() {
	w.began.Store(max(int64(time.Since(w.base)), 1))
	if !w.armed.Load() {
		w.armed.Store(true)
		w.timer.Reset(hangAfter)
	}
}

func (w *watch) leave() { w.began.Store(0) }

// out returns for how long the call under way has been out; 0 if there is none.
func (w *watch) out() time.Duration {
	began := w.began.Load()
	if began == 0 {
		return 0
	}
	return time.Since(w.base) - time.Duration(began)
}

// stuck reports whether the call under way hangs.
func (w *watch) stuck() bool { return w.out() >= hangAfter }

// look is the timer's. It does not run twice at a time, since the timer is set again only when it is about to end.
func (w *watch) look() {
	began := w.began.Load()
	switch out := w.out(); {
	case began == 0 || w.reported == began:
	case out < hangAfter:
		w.timer.Reset(hangAfter - out)
		return
	default:
		w.reported = began
		w.hangs(func() bool { return w.began.Load() == began })
	}
	reported := w.reported
	w.armed.Store(false) // from here on, the next call may set the timer
	if now := w.began.Load(); now != 0 && now != reported && !w.armed.Swap(true) {
		w.timer.Reset(hangAfter) // a call that began meanwhile
	}
}
