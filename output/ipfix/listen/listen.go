package listen

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
)

// Listen decodes what arrives at address, udp://HOST:PORT or tcp://HOST:PORT, until ctx ends, and writes it to w as
// JSON lines. An address without "://" is a file of messages, one after the other; "-" is standard input. A message that is
// malformed gives a line with an error; on a stream, it ends the connection.
func Listen(ctx context.Context, address string, w io.Writer) error {
	p := &printer{w: w, decoder: NewDecoder()}
	scheme, hostPort, ok := strings.Cut(address, "://")
	if !ok {
		return p.file(address)
	}
	switch scheme {
	case "udp":
		conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", hostPort)
		if err != nil {
			return err
		}
		return p.serveUDP(ctx, conn)
	case "tcp":
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", hostPort)
		if err != nil {
			return err
		}
		return p.serveTCP(ctx, l)
	}
	return fmt.Errorf("unknown scheme %q; write udp://HOST:PORT, tcp://HOST:PORT or the name of a file", scheme)
}

// printer decodes messages of any number of goroutines and writes them one after the other.
type printer struct {
	mu      sync.Mutex
	w       io.Writer
	decoder *Decoder
	buf     []byte
}

// errWrite says that w does not take any more.
type errWrite struct{ error }

// print decodes one message. It returns whether the message was sound, and an errWrite if w failed.
func (p *printer) print(source string, message []byte) (sound bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf, err = p.decoder.Append(p.buf[:0], source, message)
	if sound = err == nil; !sound {
		p.buf = append(appendString(append(p.buf, `{"source":`...), source), `,"error":`...)
		p.buf = append(appendString(p.buf, err.Error()), "}\n"...)
	}
	if len(p.buf) == 0 {
		return sound, nil
	}
	if _, err := p.w.Write(p.buf); err != nil {
		return sound, errWrite{err}
	}
	return sound, nil
}

func (p *printer) serveUDP(ctx context.Context, conn net.PacketConn) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	buf := make([]byte, 65536)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := p.print(from.String(), buf[:n]); err != nil {
			return err
		}
	}
}

func (p *printer) serveTCP(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			l.Close()
			var failed errWrite
			if cause := context.Cause(ctx); errors.As(cause, &failed) {
				return cause
			}
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		conns.Go(func() {
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			defer conn.Close()
			if err := p.stream(conn.RemoteAddr().String(), bufio.NewReader(conn)); err != nil {
				cancel(err)
			}
		})
	}
}

func (p *printer) file(name string) error {
	if name == "-" {
		return p.stream(name, bufio.NewReader(os.Stdin))
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return p.stream(name, bufio.NewReader(f))
}

// stream prints messages until r ends or holds no message. The length in a message's header is all that tells it from
// the next (RFC 7011, section 10.4.2), so that nothing can be read behind a malformed one.
func (p *printer) stream(source string, r io.Reader) error {
	buf := make([]byte, 65536)
	for {
		if _, err := io.ReadFull(r, buf[:headerLen]); err != nil {
			if err == io.ErrUnexpectedEOF {
				_, err := p.print(source, nil)
				return err
			}
			return nil
		}
		n := int(binary.BigEndian.Uint16(buf[2:]))
		read, _ := io.ReadFull(r, buf[headerLen:max(n, headerLen)])
		sound, err := p.print(source, buf[:headerLen+read])
		if err != nil || !sound {
			return err
		}
	}
}
