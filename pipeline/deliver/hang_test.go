package deliver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

// A Write that hangs counts as failing. What it is about goes to the spool, with what comes behind it; the end does not
// wait, and loses nothing.
func TestHangingWriteSpills(t *testing.T) {
	dir := t.TempDir()
	var next uint32
	synctest.Test(t, func(t *testing.T) {
		out := newHanging()
		core, logged := observer.New(zap.InfoLevel)
		q := queueOf(out, nil, 40_000, zap.New(core))
		q.spill(openSpool(t, dir, 0))
		p := start(q)
		time.Sleep(time.Second) // the spool is open
		next = send(p, 0, slices.Repeat([]int{200}, 50)...)
		time.Sleep(hangAfter - time.Millisecond)
		synctest.Wait()
		if q.Status().Failing {
			t.Error("it counts as failing too early")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if is := q.Status(); !is.Failing || !strings.Contains(is.Error, "hangs") || is.Held != 0 {
			t.Errorf("status %+v, want one that fails and has nothing in memory", is)
		}
		next = send(p, next, slices.Repeat([]int{200}, 50)...)
		synctest.Wait()
		if n := spooled(q); n != uint64(next) {
			t.Errorf("%d records are in the spool, want all %d", n, next)
		}
		if got := q.Since(time.Unix(0, 1e9)); got != 1e9 {
			t.Errorf("since %d, want 1e9: nothing is in memory", got)
		}
		began := time.Now()
		p.Close(t.Context())
		if took := time.Since(began); took > giveUp+lastTry {
			t.Errorf("the end took %v", took)
		}
		if gaps := q.Unrecorded(); len(gaps) > 0 || q.Stats.Left.Load() > 0 {
			t.Errorf("%d left, gaps %+v", q.Stats.Left.Load(), gaps)
		}
		if n := logged.FilterMessageSnippet("the output hangs: ").Len(); n != 1 {
			t.Errorf("the log says %d times that it hangs", n)
		}
		close(out.release)
		synctest.Wait()
	})
	good := new(stub)
	q := queueOf(good, nil, 0, zap.NewNop())
	q.spill(openSpool(t, dir, 0))
	p := start(q)
	eventually(t, "the next process delivers all", func() bool { return good.count() >= int(next) })
	p.Close(t.Context())
	if !slices.Equal(good.ids, upTo(next)) {
		t.Errorf("%d records, want each of %d once and in order", len(good.ids), next)
	}
}

// A Write that hangs and then fails is tried again before what has gone to the spool behind its back: what comes in is more
// than half of the room before anybody knows that it hangs.
func TestHangingWriteKeepsOrder(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		out := &stub{write: func(_ context.Context, call int, recs []*flow.Record) (int, error) {
			if call == 1 {
				<-release
				return 0, errors.New("connection reset")
			}
			return len(recs), nil
		}}
		q := queueOf(out, nil, 2_000, zap.NewNop())
		q.spill(openSpool(t, dir, 0))
		p := start(q)
		time.Sleep(time.Second) // the spool is open
		next := send(p, 0, 10)
		synctest.Wait()
		for range 100 {
			next = send(p, next, 200)
			synctest.Wait()
		}
		if n := spooled(q); n == 0 {
			t.Error("nothing is in the spool before the hang is known")
		}
		time.Sleep(hangAfter + time.Second)
		next = send(p, next, 200)
		synctest.Wait()
		close(release)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := out.got(); !slices.Equal(got, upTo(next)) {
			t.Errorf("%d delivered of %d, in order: %v", len(got), next, slices.IsSorted(got))
		}
		p.Close(t.Context())
		if gaps := q.Unrecorded(); len(gaps) > 0 {
			t.Errorf("gaps %+v", gaps)
		}
	})
}

// A Write that hangs and then ends well is no failure any more. What was moved to the spool meanwhile comes from there, the
// hand again.
func TestHangingWriteReturns(t *testing.T) {
	for _, spools := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			out := newHanging()
			q := queueOf(out, nil, 40_000, zap.NewNop())
			if spools {
				q.spill(openSpool(t, dir, 0))
			}
			p := start(q)
			next := send(p, 0, 10)
			synctest.Wait()
			next = send(p, next, 10)
			time.Sleep(2 * hangAfter)
			synctest.Wait()
			if !q.Status().Failing {
				t.Error("it does not count as failing")
			}
			close(out.release)
			time.Sleep(time.Minute)
			synctest.Wait()
			if is := q.Status(); is.Failing || is.Held != 0 {
				t.Errorf("spool %v: status %+v", spools, is)
			}
			want := upTo(next)
			if spools {
				want = append(upTo(10), want...)
			}
			if !slices.Equal(out.got(), want) {
				t.Errorf("spool %v: delivered %v, want %v", spools, out.got(), want)
			}
			p.Close(t.Context())
			if gaps := q.Unrecorded(); len(gaps) > 0 {
				t.Errorf("gaps %+v", gaps)
			}
		})
	}
}

// A spool that cannot be opened, or whose disk hangs in the attempt, holds up neither the output nor the end; what the spool
// has comes when it can be opened.
func TestSpoolOpensLate(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, 0)
	if _, err := s.Append([]*flow.Record{{Event: flow.EventDestroy, ID: 77, Received: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ hangs, opens bool }{"fails": {false, true}, "hangs": {true, true}, "hangs for ever": {true, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release, good := make(chan struct{}), new(stub)
				var mended atomic.Bool
				q := queueOf(good, nil, 0, zap.NewNop())
				q.spooler = newSpooler(q, func() (*spool.Spool, error) {
					switch {
					case tt.hangs:
						<-release
					case !mended.Load():
						return nil, errors.New("read-only file system")
					}
					if !tt.opens {
						return nil, errors.New("too late")
					}
					return openSpool(t, dir, 0), nil
				})
				p := start(q)
				next := send(p, 0, 10)
				time.Sleep(spoolPatience)
				synctest.Wait()
				next = send(p, next, 10)
				synctest.Wait()
				if !slices.Equal(good.got(), upTo(next)) {
					t.Errorf("delivered %v", good.got())
				}
				if tt.opens {
					mended.Store(true)
					close(release)
					time.Sleep(2 * spoolAgain)
					synctest.Wait()
					if got := good.got(); len(got) != int(next)+1 || got[next] != 77 {
						t.Errorf("delivered %v, want 77 at the end", got)
					}
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				p.Close(ctx)
				if took := time.Since(began); took > 3*time.Second+giveUp {
					t.Errorf("the end took %v", took)
				}
				if gaps := q.Unrecorded(); len(gaps) > 0 {
					t.Errorf("gaps %+v", gaps)
				}
				if !tt.opens {
					close(release)
				}
			})
			// Put it back for the next one.
			s := openSpool(t, dir, 0)
			if n, _ := s.Len(); n == 0 {
				if _, err := s.Append([]*flow.Record{{Event: flow.EventDestroy, ID: 77, Received: 1}}); err != nil {
					t.Fatal(err)
				}
			}
			s.Close()
		})
	}
}

// An output that hangs is taken out and put in again: the new one cannot be built as long as the old one holds its file, and
// then works.
func TestTakenOutAndPutInAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var file sync.Mutex // what a lock on a file does
		var outputs []*locked
		build := func() (Output, error) {
			if !file.TryLock() {
				return nil, errors.New("another process has it open")
			}
			out := &locked{file: &file}
			if len(outputs) == 0 {
				out.hanging = newHanging()
			} else {
				out.hanging = new(hanging)
			}
			outputs = append(outputs, out)
			return out, nil
		}
		old := New(Config{Name: "stub", Build: build})
		p := start(old)
		send(p, 0, 10)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		Retire(ctx, []*Queue{old})
		if lost := lostIn(old.Unrecorded()); lost != 10 {
			t.Errorf("gaps tell of %d lost records, want 10", lost)
		}
		again := New(Config{Name: "stub", Build: build})
		p = start(again)
		send(p, 100, 10)
		time.Sleep(time.Minute)
		synctest.Wait()
		if is := again.Status(); !is.Failing || is.Held != 10 {
			t.Errorf("as long as the old one holds its file: %+v", is)
		}
		close(outputs[0].release) // its call returns
		time.Sleep(lastRetry)
		synctest.Wait()
		if is := again.Status(); is.Failing || is.Held != 0 || len(outputs) != 2 || outputs[1].count() != 10 {
			t.Errorf("when it has let go: %+v, %d built", is, len(outputs))
		}
		p.Close(t.Context())
	})
}

// locked is an output that has a file to itself until it is closed.
type locked struct {
	*hanging
	file *sync.Mutex
}

func (l *locked) Close(context.Context) error {
	l.file.Unlock()
	return nil
}

// While the outputs settle, records still come and are delivered. It ends when the one has caught up and the other has been
// given up.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &stub{write: func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
			time.Sleep(time.Second)
			return len(recs), nil
		}}
		dead, hung := newSwitched(true), newHanging()
		qs := []*Queue{queueOf(slow, nil, 1<<20, zap.NewNop()), queueOf(dead, nil, 1<<20, zap.NewNop()), queueOf(hung, nil, 1<<20, zap.NewNop())}
		p := start(qs...)
		next := send(p, 0, slices.Repeat([]int{BatchRecords}, 40)...)
		synctest.Wait()
		settled := make(chan time.Duration)
		began := time.Now()
		go func() {
			Settle(t.Context(), qs)
			settled <- time.Since(began)
		}()
		time.Sleep(500 * time.Millisecond)
		next = send(p, next, 10) // the reader goes on
		if took := <-settled; took < 4*time.Second || took > hangAfter+giveUp {
			t.Errorf("settled after %v", took)
		}
		next = send(p, next, 10)
		began = time.Now()
		p.Close(t.Context())
		if took := time.Since(began); took > 2*time.Second+giveUp {
			t.Errorf("the end took %v", took)
		}
		if slow.count() != int(next) {
			t.Errorf("the slow one has %d records, want %d", slow.count(), next)
		}
		for _, q := range qs[1:] {
			gaps := q.Unrecorded()
			if len(gaps) != 1 || gaps[0].Lost != uint64(next) || !gaps[0].LostKnown || gaps[0].Cause != flow.CauseOutputDown {
				t.Errorf("gaps %+v, want one of %d", gaps, next)
			}
		}
		close(hung.release)
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told atomic.Int32
		var still atomic.Bool
		w := newWatch(func(out func() bool) { told.Add(1); still.Store(out()) })
		defer w.timer.Stop()
		for range 100 { // calls, none of which lasts
			w.enter()
			time.Sleep(hangAfter / 3)
			w.leave()
			time.Sleep(time.Millisecond)
		}
		if told.Load() != 0 {
			t.Fatalf("told %d times of calls that returned", told.Load())
		}
		for i := range int32(3) {
			w.enter()
			time.Sleep(hangAfter - time.Millisecond)
			synctest.Wait()
			if told.Load() != i || w.stuck() {
				t.Errorf("told too early")
			}
			time.Sleep(hangAfter)
			synctest.Wait()
			if told.Load() != i+1 || !still.Load() || !w.stuck() {
				t.Errorf("call %d: told %d times, out %v, stuck %v", i, told.Load(), still.Load(), w.stuck())
			}
			time.Sleep(10 * hangAfter)
			w.leave()
			if w.stuck() {
				t.Error("stuck, and it has returned")
			}
		}
		if told.Load() != 3 {
			t.Errorf("told %d times of 3", told.Load())
		}
		w.enter()
		w.leave()
		time.Sleep(time.Hour) // no timer runs on
		if w.armed.Load() {
			t.Error("the timer is armed without a call")
		}
	})
}
