package syslog

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/ctlogd/ctlogd/output/stream"
)

// tcp is a session over TCP, plain or under TLS.
type tcp struct{ *stream.Conn }

func (w *Writer) dialStream(ctx context.Context, a address) (*tcp, error) {
	var secure *tls.Config
	if a.Scheme == "tls" {
		var err error
		if secure, err = w.cfg.TLS.Config(a.Host); err != nil {
			return nil, err
		}
	}
	c, err := stream.Dial(ctx, w.sockets.DialContext, net.JoinHostPort(a.Host, a.Port), secure, "receiver", w.tender.Look)
	if err != nil {
		return nil, err
	}
	return &tcp{c}, nil
}

// send sends all messages at once. After an error none counts as written: a part of them may have come.
func (s *tcp) send(ctx context.Context, buf []byte, ends []int) (n int, err error) {
	if _, err := s.Send(ctx, buf); err != nil {
		return 0, err
	}
	return len(ends), nil
}

func (s *tcp) err() error                        { return s.Err() }
func (s *tcp) progress() (written, acked uint64) { return s.Progress() }
func (s *tcp) close()                            { s.Close() }
