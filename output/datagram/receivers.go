package datagram

import (
	"context"
	"fmt"
)

// Receiver is one of several that stand in for each other. Over UDP it has a Peer; else that is nil.
type Receiver interface {
	fmt.Stringer
	UDP() *Peer
}

// Connect has begin begin a session with the first of list that can be reached, from the active one on, and tries each of a
// peer's targets. The active one is then that of the session. The error has a reason for each, on one line, which begins with
// what. It ends early when ctx does.
func Connect[R Receiver](ctx context.Context, what string, list []R, active *int, begin func(R) error) (err error) {
	for range list {
		r := list[*active]
		peer := r.UDP()
		for tries := 1; ; tries++ {
			reason := begin(r)
			if reason == nil {
				peer.found(true)
				return nil
			}
			if at := peer.At(); at != "" {
				reason = fmt.Errorf("at %s: %w", at, reason)
			}
			reason = fmt.Errorf("%s %s: %w", what, r, reason)
			if err == nil {
				err = reason
			} else {
				err = fmt.Errorf("%w; %w", err, reason)
			}
			if ctx.Err() != nil {
				return err
			}
			peer.rotate()
			if tries >= peer.count() {
				break
			}
		}
		peer.found(false)
		standBy(list, active)
	}
	return err
}

// Next is for a session that is over: the next one is tried with another target of the active one, or with the next of
// list.
func Next[R Receiver](list []R, active *int) {
	if peer := list[*active].UDP(); peer.count() > 1 {
		peer.rotate()
	} else {
		standBy(list, active)
	}
}

// standBy makes the next of list the active one.
func standBy[R Receiver](list []R, active *int) { *active = (*active + 1) % len(list) }
