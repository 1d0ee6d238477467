package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Check tells whether the collectors' names resolve, which no collector has to be up for. The error says how to put
// things right. Files are Validate's to read.
func (c *Config) Check(ctx context.Context) error {
	return c.each(ctx, "write a name that resolves, or an address", func(ctx context.Context, a address) error {
		_, err := net.DefaultResolver.LookupHost(ctx, a.Host)
		return err
	})
}

// Reach tells whether sessions can be begun, and when the first of the certificates that the collectors show expires;
// the zero time if they show none. Over UDP it sends nothing, so that only the lack of a route shows. What the error
// says need not be lasting: an Exporter tries again.
func (c *Config) Reach(ctx context.Context) (expires time.Time, err error) {
	e, err := New(*c, Options{})
	if err != nil {
		return expires, err
	}
	err = c.each(ctx, "records wait until a session can be begun", func(ctx context.Context, a address) error {
		at := e.newCollector(a)
		defer at.peer.Close()
		session, err := e.dialCollector(ctx, at)
		if err != nil {
			return err
		}
		if s, ok := session.(*tcp); ok {
			for _, cert := range s.Chain() {
				if expires.IsZero() || cert.NotAfter.Before(expires) {
					expires = cert.NotAfter
				}
			}
		}
		return session.close()
	})
	return expires, err
}

// each calls f with each collector, within the dial timeout, and puts the errors on one line.
func (c *Config) each(ctx context.Context, remedy string, f func(context.Context, address) error) error {
	var wrong []string
	for _, a := range c.addresses() {
		timed, cancel := context.WithTimeout(ctx, c.dialTimeout())
		if err := f(timed, a); err != nil {
			wrong = append(wrong, fmt.Sprintf("collector %s: %v", a, err))
		}
		cancel()
	}
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, ", ") + "; " + remedy)
}
