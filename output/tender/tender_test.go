package tender

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// It does what is due when it is, at once if it is told to look, under the lock, and nothing after Stop.
func TestTender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var at []time.Duration
		x := New()
		tend := func(context.Context) time.Duration {
			if x.TryLock() {
				t.Error("it is without the lock")
			}
			at = append(at, time.Since(began))
			return time.Minute
		}
		x.Look()
		x.Start(time.Second, tend)
		x.Start(time.Second, tend) // runs already
		time.Sleep(90 * time.Second)
		x.Look()
		time.Sleep(50 * time.Second)
		if !x.TryLock() {
			t.Fatal("the lock is not given back")
		}
		time.Sleep(20 * time.Second) // due since 10 s
		x.Unlock()
		synctest.Wait()
		x.Stop()
		x.Look()
		time.Sleep(time.Hour)
		if want := []time.Duration{0, time.Minute, 90 * time.Second, 160 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("it was at %v, want %v", at, want)
		}
	})
}

// Stop ends what takes its time without the lock, and waits for it.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := New()
		ended := false
		x.Start(0, func(ctx context.Context) time.Duration {
			x.Unlocked(func() { <-ctx.Done() })
			ended = true
			return 0
		})
		synctest.Wait()
		if err := x.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := x.Lock(ctx); err == nil {
			t.Error("two have the lock")
		}
		x.Unlock()
		if x.Stop(); !ended {
			t.Error("Stop has not waited")
		}
		New().Stop() // has not begun
	})
}
