package kafka

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
)

// maxAnswer is the size of the largest answer that is believed. What another service than Kafka says, text or TLS, reads
// as a size above it.
const maxAnswer = 64 << 20

var (
	errNoKafka = errors.New("what answers there is no Kafka broker; check address and port")
	errTLS     = errors.New("the port speaks TLS; set tls")
)

// connections are the transport's, so that all of them can be closed.
type connections struct {
	dialer net.Dialer
	other  func(ctx context.Context, network, address string) (net.Conn, error) // dials instead; nil: dialer does
	tls    *TLS                                                                 // nil: none
	verify func(tls.ConnectionState) error                                      // looks at what a broker shows; may be nil
	mu     sync.Mutex
	open   map[*connection]struct{}
}

func (c *connections) dial(ctx context.Context, network, address string) (net.Conn, error) {
	nc, err := c.connect(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := &connection{Conn: nc, raw: nc, all: c}
	c.mu.Lock()
	if c.open == nil {
		c.open = make(map[*connection]struct{})
	}
	c.open[conn] = struct{}{}
	c.mu.Unlock()
	if c.tls == nil {
		return conn, nil
	}
	if err := c.secure(ctx, conn, address); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// connect connects, within the dialer's time.
func (c *connections) connect(ctx context.Context, network, address string) (net.Conn, error) {
	if c.other == nil {
		return c.dialer.DialContext(ctx, network, address)
	}
	if c.dialer.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.dialer.Timeout)
		defer cancel()
	}
	return c.other(ctx, network, address)
}

// secure puts TLS on top of a connection. The files are read anew for each: certificates expire, and are renewed in
// their place.
func (c *connections) secure(ctx context.Context, conn *connection, address string) error {
	host, _, _ := net.SplitHostPort(address)
	cfg, err := c.tls.Config(host)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	cfg.VerifyConnection = c.verify
	secure := tls.Client(conn.raw, cfg)
	conn.Conn = secure
	return secure.HandshakeContext(ctx)
}

func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.raw.Close() // whoever uses it gets the error
	}
	clear(c.open)
}

// connection looks at the size of each answer before kafka-go does, which makes room for whatever an answer says: one
// byte out of place, or another service at the port, would take all memory there is.
type connection struct {
	net.Conn
	raw  net.Conn // the same, below TLS
	all  *connections
	size [4]byte // of the next answer
	have int     // bytes of size
	left int     // bytes of the answer that are still to come
}

// Read is called by one goroutine at a time.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if c.left > 0 {
			k := min(c.left, len(b))
			b, c.left = b[k:], c.left-k
			continue
		}
		k := copy(c.size[c.have:], b)
		b, c.have = b[k:], c.have+k
		if c.have < len(c.size) {
			continue
		}
		size := binary.BigEndian.Uint32(c.size[:])
		switch {
		case size <= maxAnswer:
			c.have, c.left = 0, int(size)
		case c.size[0] == 21 && c.size[1] == 3: // a TLS alert
			return 0, errTLS
		default:
			return 0, errNoKafka
		}
	}
	return n, err
}

func (c *connection) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}
