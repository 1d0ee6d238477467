package datagram

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ctlogd/ctlogd/ownflow"
)

// Peer is a receiver over UDP. It is at one or several targets, the addresses of its name, since nothing but an answer tells
// at which of them it listens. The methods of a nil *Peer are for a receiver that is reached otherwise: it has one target.
type Peer struct {
	Host, Port string
	Resolve    func(ctx context.Context, network, host string) ([]netip.Addr, error) // as net.Resolver.LookupNetIP
	Sockets    *ownflow.Sockets                                                      // is told of the peer's sockets; may be nil
	Refused    *atomic.Uint64                                                        // counts refusals

	absent   bool             // at none of its targets, when they were last tried
	targets  []netip.AddrPort // the one to try next in front
	resolved time.Time        // when the name was last looked up

	// sockets are kept when a session ends: the next one to the same target has the same port, and is the same flow in
	// the connection tracking tables on its way.
	sockets map[netip.AddrPort]*Socket
}

// absentRetry is how old an address of a receiver may be that is at none of its addresses.
const absentRetry = time.Second

// Named reports whether the peer's host is a name, whose addresses may change.
func (p *Peer) Named() bool {
	if p == nil {
		return false
	}
	_, err := netip.ParseAddr(p.Host)
	return err != nil
}

// Stale reports whether the peer has a name that was looked up so long ago.
func (p *Peer) Stale(age time.Duration) bool { return p.Named() && time.Since(p.resolved) >= age }

// found notes whether the peer was at one of its targets.
func (p *Peer) found(is bool) {
	if p != nil {
		p.absent = !is
	}
}

// LookUp returns where the peer is now. It may wait for a name server until ctx ends, and reads only what does not change.
func (p *Peer) LookUp(ctx context.Context) (targets []netip.AddrPort, err error) {
	port, err := strconv.ParseUint(p.Port, 10, 16)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(p.Host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), uint16(port))}, nil
	}
	list, err := p.Resolve(ctx, "ip", p.Host)
	if err != nil {
		return nil, err
	}
	for _, ip := range list {
		if t := netip.AddrPortFrom(ip.Unmap(), uint16(port)); !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
	}
	if targets == nil {
		return nil, fmt.Errorf("%s has no address", p.Host)
	}
	return targets, nil
}

// Move notes where the peer is now, and closes sockets to where it is not. What is in front stays there if it is still right.
// changed reports whether it is not, or was not known. Without targets they stay as they are until they are next looked up.
func (p *Peer) Move(targets []netip.AddrPort) (changed bool) {
	p.resolved = time.Now()
	if targets == nil {
		return false
	}
	if len(p.targets) > 0 {
		if i := slices.Index(targets, p.targets[0]); i >= 0 {
			targets = slices.Concat(targets[i:], targets[:i])
		} else {
			changed = true
		}
	}
	p.targets = targets
	maps.DeleteFunc(p.sockets, func(t netip.AddrPort, s *Socket) bool {
		gone := !slices.Contains(targets, t)
		if gone {
			s.Close()
		}
		return gone
	})
	return changed
}

// count returns how many addresses the peer has, as far as is known.
func (p *Peer) count() int {
	if p == nil {
		return 1
	}
	return len(p.targets)
}

// At returns the target in front, where the name does not tell; "" where it does, or nothing is known.
func (p *Peer) At() string {
	if !p.Named() || len(p.targets) == 0 {
		return ""
	}
	return p.targets[0].String()
}

// rotate puts the target in front behind the others.
func (p *Peer) rotate() {
	if p.count() > 1 {
		p.targets = append(p.targets[1:], p.targets[0])
	}
}

// Dial returns a socket to the target in front, with a session of its own. The name is looked up if that was longer ago than
// stale.
func (p *Peer) Dial(ctx context.Context, stale time.Duration) (*Socket, error) {
	if p.absent {
		stale = min(stale, absentRetry)
	}
	if p.targets == nil || p.Stale(stale) {
		targets, err := p.LookUp(ctx)
		switch {
		case err == nil:
			p.Move(targets)
		case p.targets == nil:
			return nil, err
		}
	}
	target := p.targets[0]
	if s := p.sockets[target]; s != nil {
		s.Revive()
		return s, nil
	}
	s, err := DialUDP(target, p.Sockets, p.Refused)
	if err != nil {
		return nil, err
	}
	if p.sockets == nil {
		p.sockets = map[netip.AddrPort]*Socket{}
	}
	p.sockets[target] = s
	return s, nil
}

// Close closes the peer's sockets.
func (p *Peer) Close() {
	if p == nil {
		return
	}
	for _, s := range p.sockets {
		s.Close()
	}
	clear(p.sockets)
}
