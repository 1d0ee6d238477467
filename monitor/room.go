//go:build !small

package monitor

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// room bounds the connections of a server. A new one is always let in: at the bound the one that has been idle longest
// leaves for it, or, where all are busy, the one that has been so longest. An honest request takes milliseconds, so that
// neither idle connections nor slow ones can keep a scrape or a health check out.
type room struct {
	net.Listener
	max int

	mu     sync.Mutex
	guests map[net.Conn]guest // by the connection as the system has it
}

// guest is one connection.
type guest struct {
	idle  bool      // between two requests
	since time.Time // when that began, or ended
}

func newRoom(l net.Listener, max int) *room {
	return &room{Listener: l, max: max, guests: map[net.Conn]guest{}}
}

// Accept is part of net.Listener.
func (r *room) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.guests) >= r.max {
		leaves := r.first()
		delete(r.guests, leaves)
		_ = leaves.Close()
	}
	r.guests[c] = guest{since: time.Now()}
	return &roomConn{c, r}, nil
}

// first returns who has to leave first. The lock is held, and somebody is there.
func (r *room) first() (leaves net.Conn) {
	var is guest
	for c, g := range r.guests {
		if leaves == nil || g.idle && !is.idle || g.idle == is.idle && g.since.Before(is.since) {
			leaves, is = c, g
		}
	}
	return leaves
}

// state takes what http.Server.ConnState tells.
func (r *room) state(c net.Conn, s http.ConnState) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	rc, ok := c.(*roomConn)
	if !ok || s != http.StateIdle && s != http.StateActive {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.guests[rc.Conn]; ok {
		r.guests[rc.Conn] = guest{s == http.StateIdle, time.Now()}
	}
}

// roomConn leaves when it is closed.
type roomConn struct {
	net.Conn
	room *room
}

func (c *roomConn) Close() error {
	c.room.mu.Lock()
	delete(c.room.guests, c.Conn)
	c.room.mu.Unlock()
	return c.Conn.Close()
}
