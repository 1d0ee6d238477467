// Package tender has what sees to an output's session while nothing is written: a goroutine that does what is due, under a lock
// that it shares with Write.
package tender

import (
	"context"
	"time"
)

// Tender is an output's. Its lock is the output's, over all that sessions are made of.
type Tender struct {
	held chan struct{} // full while somebody holds the lock
	wake chan struct{} // full when it is time to look
	stop context.CancelFunc
	done chan struct{} // closed when the goroutine has ended; nil until it runs
}

// New returns a Tender without a goroutine.
func New() *Tender { return &Tender{held: make(chan struct{}, 1), wake: make(chan struct{}, 1)} }

// Lock takes the lock, or returns the error of ctx when that ends before. A lock that is free is taken in any case.
func (t *Tender) Lock(ctx context.Context) error {
	if t.TryLock() {
		return nil
	}
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TryLock takes the lock if it is free.
func (t *Tender) TryLock() bool {
	select {
	case t.held <- struct{}{}:
		return true
	default:
		return false
	}
}

// Unlock gives the lock back.
func (t *Tender) Unlock() { <-t.held }

// Unlocked calls f, which may take its time, without the lock, which the caller has.
func (t *Tender) Unlocked(f func()) {
	t.Unlock()
	defer func() { t.held <- struct{}{} }()
	f()
}

// Look has the goroutine look at once. Any goroutine may call it.
func (t *Tender) Look() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Start runs the goroutine, unless it runs. It calls tend with the lock held, for the first time when first has passed or Look was
// called, and then when as much has passed as tend has returned. The caller has the lock.
func (t *Tender) Start(first time.Duration, tend func(ctx context.Context) time.Duration) {
	if t.done != nil {
		return
	}
	t.done = make(chan struct{})
	var ctx context.Context
	ctx, t.stop = context.WithCancel(context.Background())
	go t.run(ctx, first, tend)
}

func (t *Tender) run(ctx context.Context, first time.Duration, tend func(context.Context) time.Duration) {
	defer close(t.done)
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-timer.C:
		}
		if ctx.Err() != nil || t.Lock(ctx) != nil {
			return
		}
		wait := tend(ctx)
		t.Unlock()
		timer.Reset(wait)
	}
}

// Stop ends the goroutine, if it runs, and the ctx of a tend that is under way, which it waits for. The caller has not the lock.
func (t *Tender) Stop() {
	if t.done != nil {
		t.stop()
		<-t.done
	}
}
