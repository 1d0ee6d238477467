package subscriber

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"
	"layeh.com/radius"
	"layeh.com/radius/rfc2865"
	"layeh.com/radius/rfc2866"
	"layeh.com/radius/rfc3162"
	"layeh.com/radius/rfc4818"
	"layeh.com/radius/rfc6911"
)

const (
	// early is how long before its accounting begins a session may have sent packets. It counts as long as it is known that nobody
	// else had the address.
	early = 5 * time.Second

	showEvery = 100 * time.Millisecond // packets that were taken are in the table so soon
	showAt    = 4096                   // or when they are so many

	maxNAS  = 1<<16 - 1
	maxTurn = 1 << 20 // bytes of the socket's buffer
)

// listener takes accounting packets (RFC 2866) and answers them. It is for one goroutine.
type listener struct {
	source *Source
	log    *zap.Logger
	allow  []netip.Prefix
	secret []byte
	since  time.Time // when it began to listen

	table *table
	edits []edit
	nas   map[string]uint16 // the marks of those who keep the sessions; as long-lived as the table, which has the marks
	pace  pace
}

// listen takes packets until ctx ends. What keeps it from that is tried again. The sessions are kept in the file, if there is
// a name of one.
func (s *Source) listen(ctx context.Context, file string) {
	nas, before := map[string]uint16{}, s.before
	s.before = nil // its table may go
	if file == "" {
		close(s.kept)
	} else {
		recalled, ended := make(chan *sessions, 1), make(chan struct{})
		defer close(ended)
		go s.keep(file, before, recalled, ended)
		nas = s.take(ctx, recalled)
	}
	for ctx.Err() == nil {
		l, conn, err := s.open(ctx, nas)
		if err == nil {
			s.well(time.Now())
			err = l.run(ctx, conn)
		}
		if ctx.Err() != nil {
			return
		}
		s.fail(err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (s *Source) open(ctx context.Context, nas map[string]uint16) (*listener, *net.UDPConn, error) {
	secret, err := s.cfg.secret()
	if err != nil {
		return nil, nil, err
	}
	l := &listener{source: s, log: s.log, secret: secret, table: s.table.Load(), nas: nas, since: time.Now()}
	for _, c := range s.cfg.Clients {
		p, err := parsePrefix(c)
		if err != nil {
			return nil, nil, err
		}
		l.allow = append(l.allow, p)
	}
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", cmp.Or(s.cfg.Listen, DefaultListen))
	if err != nil {
		return nil, nil, err
	}
	udp := conn.(*net.UDPConn)
	_ = udp.SetReadBuffer(maxTurn) // what the kernel gives is enough
	return l, udp, nil
}

// run takes packets from conn, which it closes.
func (l *listener) run(ctx context.Context, conn *net.UDPConn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, radius.MaxPacketLength)
	var shown time.Time
	for {
		if err := conn.SetReadDeadline(time.Now().Add(showEvery)); err != nil {
			return err
		}
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		now := time.Now()
		switch {
		case err == nil:
			l.pace.rest()
			if answer := l.packet(buf[:n], from.Addr().Unmap(), now); answer != nil {
				_, _ = conn.WriteToUDPAddrPort(answer, from) // the client asks again
			}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			l.show(now) // it was answered
			return err
		}
		if len(l.edits) >= showAt || now.Sub(shown) >= showEvery {
			l.show(now)
			shown = now
		}
	}
}

// show puts what was taken into the table.
func (l *listener) show(now time.Time) {
	if len(l.edits) > 0 {
		l.apply(now)
		l.source.Loads.Add(1)
		l.source.show(l.table, now.UnixNano())
	}
	l.source.Fresh.Store(now.UnixNano()) // behind the table: see save
}

func (l *listener) apply(now time.Time) {
	l.table = l.source.grown(l.table.with(l.edits, l.horizon(now), l.pace.rest))
	l.edits = l.edits[:0]
}

// horizon is the end of what is remembered.
func (l *listener) horizon(now time.Time) int64 { return now.Add(-l.source.cfg.History).UnixNano() }

// packet takes a packet and returns the answer, nil if it is not answered: then the client sends it again, or to another
// server.
func (l *listener) packet(b []byte, from netip.Addr, now time.Time) []byte {
	st := &l.source.Stats
	if !l.allowed(from) {
		st.Foreign.Add(1)
		return nil
	}
	p, err := radius.Parse(b, l.secret)
	if err != nil {
		st.Damaged.Add(1)
		return nil
	}
	if p.Code != radius.CodeAccountingRequest {
		st.Useless.Add(1)
		return nil
	}
	if size := int(b[2])<<8 | int(b[3]); !radius.IsAuthenticRequest(b[:size], l.secret) {
		st.Forged.Add(1)
		return nil
	}
	switch l.account(p, from, now) {
	case taken:
		st.Accepted.Add(1)
	case useless:
		st.Useless.Add(1)
	case full:
		st.Full.Add(1)
		return nil
	}
	answer, err := p.Response(radius.CodeAccountingResponse).Encode()
	if err != nil {
		return nil
	}
	return answer
}

func (l *listener) allowed(from netip.Addr) bool {
	for _, p := range l.allow {
		if p.Contains(from) {
			return true
		}
	}
	return false
}

type outcome int

const (
	taken outcome = iota
	useless
	full
)

// account notes what an authentic packet says. Times are this host's, less the time that the client has been trying: flows
// have this host's times as well.
func (l *listener) account(p *radius.Packet, from netip.Addr, now time.Time) outcome {
	at := now.Add(-time.Duration(min(uint32(rfc2866.AcctDelayTime_Get(p)), 86400)) * time.Second).UnixNano()
	mark := l.markOf(p, from)
	switch kind := rfc2866.AcctStatusType_Get(p); kind {
	case rfc2866.AcctStatusType_Value_Start, rfc2866.AcctStatusType_Value_InterimUpdate:
		goesOn, start, said := kind == rfc2866.AcctStatusType_Value_InterimUpdate, at, int64(0)
		if goesOn {
			start -= min(int64(rfc2866.AcctSessionTime_Get(p)), 1<<31) * 1e9
			said = at
		}
		until := at + l.source.cfg.SessionTimeout.Nanoseconds()
		// Of the time in which nobody listened it is not known who else had the address.
		early := min(early.Nanoseconds(), max(at-l.since.UnixNano(), 0))
		noRoom := false
		result := l.each(p, func(x prefix, id string) {
			g, s := l.table.latest(x)
			if s == nil && !l.room(now) { // a session that is known goes on though the table is full
				noRoom = true
				return
			}
			if goesOn && s != nil && s.holds(at) && g.idOf(s) == id && s.mark == mark &&
				until-s.until < l.source.cfg.SessionTimeout.Nanoseconds()/10 {
				return // what is known is nearly the same, and each edit costs a page
			}
			l.edits = append(l.edits, edit{prefix: x, from: max(start, 1), until: until, id: id, mark: mark, said: said, early: early})
		})
		if noRoom {
			return full
		}
		return result
	case rfc2866.AcctStatusType_Value_Stop:
		return l.each(p, func(x prefix, id string) {
			l.edits = append(l.edits, edit{prefix: x, from: at, until: at, id: id, ends: true})
		})
	case rfc2866.AcctStatusType_Value_AccountingOn, rfc2866.AcctStatusType_Value_AccountingOff:
		l.restarted(mark, at, now)
		return taken
	}
	return useless
}

// room reports whether the table may have a prefix more.
func (l *listener) room(now time.Time) bool {
	limit := l.source.cfg.Limit
	if len(l.edits) > 0 && len(l.edits)+l.table.leases >= limit {
		l.apply(now) // not every edit is of a new prefix
	}
	return len(l.edits)+l.table.leases < limit
}

// each calls note with each prefix of the packet's session.
func (l *listener) each(p *radius.Packet, note func(x prefix, id string)) outcome {
	id := rfc2865.UserName_GetString(p)
	if id == "" || len(id) > MaxText {
		return useless
	}
	result := useless
	found := func(q netip.Prefix) {
		if q.IsValid() && q.Bits() > 0 {
			note(prefixOf(q.Masked()), id)
			result = taken
		}
	}
	if ip, err := rfc2865.FramedIPAddress_Lookup(p); err == nil {
		// 255.255.255.254 and 255.255.255.255 say that somebody else chooses the address (RFC 2865, section 5.8).
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && a.As4()[0] != 255 && !a.IsUnspecified() {
			found(netip.PrefixFrom(a, 32))
		}
	}
	if list, err := rfc6911.FramedIPv6Address_Gets(p); err == nil {
		for _, ip := range list {
			if a, ok := netip.AddrFromSlice(ip.To16()); ok && !a.Is4In6() {
				found(netip.PrefixFrom(a, 128))
			}
		}
	}
	for _, gets := range []func(*radius.Packet) ([]*net.IPNet, error){rfc3162.FramedIPv6Prefix_Gets, rfc4818.DelegatedIPv6Prefix_Gets} {
		list, err := gets(p)
		if err != nil {
			continue
		}
		for _, n := range list {
			a, ok := netip.AddrFromSlice(n.IP.To16())
			if bits, _ := n.Mask.Size(); ok && !a.Is4In6() {
				found(netip.PrefixFrom(a, bits))
			}
		}
	}
	return result
}

// markOf returns the mark of those who keep the session, 0 if there are too many of them.
func (l *listener) markOf(p *radius.Packet, from netip.Addr) uint16 {
	name := "address " + from.String()
	if id := rfc2865.NASIdentifier_GetString(p); id != "" {
		name = "identifier " + id
	} else if ip := rfc2865.NASIPAddress_Get(p); ip != nil {
		name = "address " + ip.String()
	}
	mark, ok := l.nas[name]
	if !ok && len(l.nas) < maxNAS {
		mark = uint16(len(l.nas) + 1)
		l.nas[name] = mark
		var names []string
		if was := l.source.nas.Load(); was != nil {
			names = *was
		}
		names = append(slices.Clip(names), name)
		l.source.nas.Store(&names)
	}
	return mark
}

// restarted ends the sessions of one that has no more of them (RFC 2866, section 5.1: Accounting-On and -Off).
func (l *listener) restarted(mark uint16, at int64, now time.Time) {
	l.apply(now)
	if mark == 0 {
		return
	}
	var ended int
	l.table, ended = l.table.without(at, func(s *slot) bool { return s.mark == mark && s.holds(at) }, l.horizon(now), l.pace.rest)
	l.log.Info("a RADIUS client has no more sessions", zap.Int("ended", ended))
	l.source.show(l.table, now.UnixNano())
}
