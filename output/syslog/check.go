package syslog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/certfile"
	"github.com/ctlogd/ctlogd/output/endpoint"
)

// Check tells whether the receivers' names resolve, which no receiver has to be up for, and whether unix sockets can be
// written to. The error says how to put things right. Files are Validate's to read.
func (c Config) Check(ctx context.Context) error {
	c.Defaults()
	return c.each(ctx, "write a name that resolves, an address, or the path of a socket", func(ctx context.Context, a address) error {
		if a.local() {
			err := unix.Access(a.Host, unix.W_OK)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("%w; start who listens there", err)
			case err != nil:
				return fmt.Errorf("%w; let user %d write to it", err, os.Geteuid())
			}
			return nil
		}
		_, err := net.DefaultResolver.LookupHost(ctx, a.Host)
		return err
	})
}

// Reach tells whether sessions can be begun, and when the first of the certificates that the receivers show expires; the
// zero time if they show none. It sends no message. What the error says need not be lasting: a Writer tries again.
func (c Config) Reach(ctx context.Context) (expires time.Time, err error) {
	w, err := New(c, Options{})
	if err != nil {
		return expires, err
	}
	err = w.cfg.each(ctx, "records wait until a session can be begun", func(ctx context.Context, a address) error {
		r := w.newReceiver(a)
		session, err := w.dial(ctx, r)
		if err != nil {
			return err
		}
		defer session.close()
		defer r.peer.Close()
		if s, ok := session.(*tcp); ok {
			expires = certfile.Expiry(expires, s.Chain())
		}
		return nil
	})
	return expires, err
}

// each calls f with each receiver, within the dial timeout.
func (c *Config) each(ctx context.Context, remedy string, f func(context.Context, address) error) error {
	return endpoint.Each(ctx, c.addresses(), "receiver", c.DialTimeout, remedy, f)
}
