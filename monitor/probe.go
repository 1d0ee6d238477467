//go:build !small

package monitor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
)

// Check tells what of c cannot work on this host. It leaves the port alone, which is the daemon's.
func (c *Config) Check(ctx context.Context) error {
	if err := web.Validate(c.WebConfig); err != nil {
		return fmt.Errorf("web_config: %w; see exporter-toolkit's web configuration", err)
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return fmt.Errorf("%w; set listen to an address of this host, 127.0.0.1 or [::1] say", err)
	}
	return l.Close()
}

// Reach tells why the port cannot be had now. It has it for a moment.
func (c *Config) Reach(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && c.isCtlogd(ctx):
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w; that is right if ctlogd runs there, else set another port", err)
	case err != nil:
		return err
	}
	return l.Close()
}

// isCtlogd reports whether a ctlogd answers where metrics are to be served: then the port is in use as it should be.
func (c *Config) isCtlogd(ctx context.Context) bool {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return false
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // nothing is told to it, and only its name is believed
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, scheme := range []string{"http", "https"} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+"/healthz", nil)
		if err != nil {
			return false
		}
		if answer, err := client.Do(r); err == nil {
			answer.Body.Close()
			asks := c.WebConfig != "" && answer.StatusCode == http.StatusUnauthorized // for a password, which nobody has here
			if asks || answer.Header.Get("Server") == serverName {
				return true
			}
		}
	}
	return false
}
