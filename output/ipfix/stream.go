package ipfix

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/ctlogd/ctlogd/output/stream"
)

// tcp is a session over TCP, plain or under TLS.
type tcp struct {
	sequences
	*stream.Conn
	size int // configured message size; 0: the usual one
	bufs [][]byte
}

func (e *Exporter) dialStream(ctx context.Context, a address, size int) (*tcp, error) {
	var secure *tls.Config
	if a.Scheme == "tls" {
		var err error
		if secure, err = e.config.TLS.Config(a.Host); err != nil {
			return nil, err
		}
	}
	c, err := stream.Dial(ctx, e.sockets.DialContext, net.JoinHostPort(a.Host, a.Port), secure, "collector", e.tender.Look)
	if err != nil {
		return nil, err
	}
	return &tcp{Conn: c, size: size}, nil
}

func (s *tcp) send(ctx context.Context, msgs []*message) (n int, err error) {
	s.bufs = s.bufs[:0]
	for _, m := range msgs {
		s.bufs = append(s.bufs, m.buf)
	}
	ends, err := s.Send(ctx, s.bufs...)
	for i, end := range ends {
		msgs[i].end = end
	}
	return len(ends), err
}

func (s *tcp) limit() int {
	if s.size == 0 {
		return streamSize
	}
	return s.size
}

func (s *tcp) reliable() bool                    { return true }
func (s *tcp) err() error                        { return s.Err() }
func (s *tcp) deaf() bool                        { return s.Deaf() }
func (s *tcp) progress() (written, acked uint64) { return s.Progress() }
func (s *tcp) close() error                      { return s.Close() }
