package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Domain returns the observation domain of the flows.
func (c *Config) Domain() uint32 { return c.domain() }

// Collectors returns the addresses of Address and Failover, each with its port, of a valid configuration.
func (c *Config) Collectors() []string {
	var list []string
	for _, a := range c.addresses() {
		list = append(list, a.String())
	}
	return list
}

// Check tells whether the collectors' names resolve, which no collector has to be up for. The error says how to put
// things right. Files are Validate's to read.
func (c *Config) Check(ctx context.Context) error {
	return c.each(ctx, func(ctx context.Context, a address) error {
		if _, err := net.DefaultResolver.LookupHost(ctx, a.host); err != nil {
			return fmt.Errorf("collector %s: %w; write a name that resolves, or an address", a, err)
		}
		return nil
	})
}

// Reach tells whether sessions can be begun. Over UDP it sends nothing, so that only the lack of a route shows. What
// the error says need not be lasting: an Exporter tries again.
func (c *Config) Reach(ctx context.Context) error {
	e, err := New(*c, nil)
	if err != nil {
		return err
	}
	return c.each(ctx, func(ctx context.Context, a address) error {
		session, err := e.dialAddress(ctx, a)
		if err != nil {
			return fmt.Errorf("connect to collector %s: %w; until it takes them, records wait in the queue", a, err)
		}
		session.close()
		return nil
	})
}

// each calls f with each collector, within the dial timeout, and joins the errors on one line.
func (c *Config) each(ctx context.Context, f func(context.Context, address) error) error {
	var wrong []string
	for _, a := range c.addresses() {
		timed, cancel := context.WithTimeout(ctx, c.dialTimeout())
		err := f(timed, a)
		cancel()
		if err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, "; "))
}
