package ctnetlink

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// ReadTable calls visit for each flow in the table of the caller's network namespace, through a socket of its own and
// on the caller's goroutine; the record is visit's until it returns. A dump is no snapshot: flows that come and go
// meanwhile may be in it or not.
func ReadTable(ctx context.Context, visit func(*flow.Record)) error {
	return read(ctx, -1, 0, subsysCT, visit)
}

// ReadExpectations does the same for each expectation, as a record of one that is new: Timeout is what is left of it, and
// Reply the mask of its tuple.
func ReadExpectations(ctx context.Context, visit func(*flow.Record)) error {
	return read(ctx, -1, 0, subsysExp, visit)
}

// ReadTableIn is ReadTable, or if expectations ReadExpectations, for the network namespace n in which the netlink socket conn
// was made. It closes conn.
func ReadTableIn(ctx context.Context, conn int, n flow.Netns, expectations bool, visit func(*flow.Record)) error {
	subsystem := uint16(subsysCT)
	if expectations {
		subsystem = subsysExp
	}
	return read(ctx, conn, n, subsystem, visit)
}

// read reads from conn, or from a socket of its own if that is -1.
func read(ctx context.Context, conn int, n flow.Netns, subsystem uint16, visit func(*flow.Record)) (err error) {
	if conn < 0 {
		if conn, err = newSocket(); err != nil {
			return err
		}
	}
	d := newDumpOn(conn, subsystem, job{}, time.Now())
	d.netns = n
	defer d.close()
	for begun := false; !begun; time.Sleep(askedWait) {
		if begun, err = d.begun(time.Now()); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	var stats Stats
	fds := [...]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
	for ctx.Err() == nil {
		if _, err := unix.Poll(fds[:], 1000); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for the table: %w", err)
		}
		more, err := d.step(&stats, time.Now(), visit)
		if err != nil {
			return fmt.Errorf("read the table: %w", err)
		}
		if !more {
			return nil
		}
	}
	return ctx.Err()
}
