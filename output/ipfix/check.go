package ipfix

import (
	"context"
	"net"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile"
	"github.com/ctlogd/ctlogd/output/endpoint"
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
			expires = certfile.Expiry(expires, s.Chain())
		}
		return session.close()
	})
	return expires, err
}

// each calls f with each collector, within the dial timeout.
func (c *Config) each(ctx context.Context, remedy string, f func(context.Context, address) error) error {
	return endpoint.Each(ctx, c.addresses(), "collector", c.dialTimeout(), remedy, f)
}
