package ctnetlink

import (
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/input/netns"
)

const (
	// lookEvery is how often losses are looked for while events flow; it bounds how exactly the time of one is known.
	lookEvery = 10 * time.Millisecond

	// idle is how long the source has nothing to do at most.
	idle = time.Second
)

// Options are what the source needs besides its configuration. All of them may be left out.
type Options struct {
	Log *zap.Logger

	// Drop tells the records that every output drops for certain; the kernel then drops them.
	Drop func(event flow.Event, v6 bool, proto flow.Proto) bool

	// Kept is the socket of a predecessor, with what waits in it. It is Open's, which closes it.
	Kept *os.File

	// Handover leaves the socket a member of its groups at the end, for a successor that has it too.
	Handover bool

	// Remember is called on the reader's goroutine for every flow of the initial dump that has a helper, a master or
	// labels. The record is the callee's until it returns.
	Remember func(*flow.Record)

	// Room reports whether the outputs have room for many records. It is called on the reader's goroutine before each
	// chunk of open records, and must not wait. Without it, they always have.
	Room func() bool
}

// Source reads the events of the network namespace in which it was opened, and of others if asked. Its methods are for the reader's goroutine,
// unless they say otherwise.
type Source struct {
	Stats Stats

	cfg  Config
	opts Options
	sock *socket
	wake int // eventfd that ends a blocking wait

	messages messages
	lost     unreadable // not yet in a gap
	delivery delivery
	guard    *guard // nil: off
	switches switches
	table    *table
	others   *others // nil: of no other namespace
	asked    bool    // the configuration asks for other namespaces
	lookedAt time.Time

	handedOver bool // the socket is a successor's: it is not read any more
}

// Open opens the socket and joins the groups: from here on no event is missed. It starts the guard. cfg must be valid and
// have its defaults.
func Open(cfg Config, opts Options) (_ *Source, err error) {
	if opts.Log == nil {
		opts.Log = zap.NewNop()
	}
	in := cfg.interest(opts.Drop)
	sock, err := openSocket(&cfg, opts.Log, in, opts.Kept)
	if err != nil {
		return nil, err
	}
	joined := time.Now()
	s := &Source{cfg: cfg, opts: opts, sock: sock, wake: -1, messages: messages{block: newBlock()}, lookedAt: joined,
		switches: newSwitches(opts.Log, joined, readSwitch), delivery: delivery{reliable: cfg.Delivery == Reliable, lookedAt: joined, caught: joined}}
	defer func() {
		if err != nil {
			_ = sock.abandon() // the keeper of a kept one has it open still
			_ = s.Close()
		}
	}()
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("open eventfd: %w", err)
	}
	// What a kept socket has dropped before is for whoever knows what its former reader has accounted for (Dropped).
	if s.delivery.drops, err = sock.drops(); err != nil {
		return nil, err
	}
	if !sock.adopted {
		s.opts.Kept = nil
	}
	s.table = newTable(&s.cfg, &s.opts, &s.Stats, joined)
	s.asked = cfg.Others()
	if sock.others {
		s.messages.block.askNamespaces()
		if s.others, err = watchOthers(&s.cfg, &s.Stats, s.table, opts.Log.Named("netns"), s.Wake); err != nil {
			return nil, err
		}
		s.table.view = s.others.watcher.View
	}
	if s.delivery.reliable && *cfg.TableGuard > 0 {
		if s.guard, err = newGuard(sock, *cfg.TableGuard, in, &s.Stats, opts.Log); err != nil {
			return nil, err
		}
		s.guard.view = s.table.view
		s.guard.start()
	}
	return s, nil
}

// interest returns what the socket filter lets through.
func (c *Config) interest(drop func(flow.Event, bool, flow.Proto) bool) interest {
	return interest{news: c.wants("new"), updates: c.wants("update"), labels: c.Labels, drop: drop}
}

// Dropped returns how many messages the kernel has not put into the socket since it was opened, modulo 2^32, as far as
// they are accounted for: before the reader runs those that the socket came with, after it also those that are in gaps.
// The cookie tells the socket from any other of this boot.
func (s *Source) Dropped() (cookie uint64, drops uint32, err error) {
	cookie, err = s.sock.cookie()
	return cookie, s.delivery.drops, err
}

// Adopted reports whether the socket is Options.Kept.
func (s *Source) Adopted() bool { return s.sock.adopted }

// Namespaces returns the other network namespaces, nil if the process lacks the rights to hear of them, and whether they were
// asked for at the start. Any goroutine may call it.
func (s *Source) Namespaces() (view *netns.View, asked bool) {
	if s.others == nil {
		return nil, s.asked
	}
	return s.others.watcher.View(), true
}

// FD returns the socket, for somebody to keep for a successor. It is valid until Close.
func (s *Source) FD() int { return s.sock.fd }

// Close ends the guard and gives the socket back. The reader must have ended; what the guard threw away since then is
// returned by Unrecorded.
func (s *Source) Close() error {
	s.others.close()
	if s.wake >= 0 {
		_ = unix.Close(s.wake)
	}
	s.table.finish()
	s.guard.stop()
	s.guard.close()
	return s.sock.close()
}

// Unrecorded returns the gap of the ends that the guard has thrown away and of which no record was made, because the
// reader had ended. Call it after Close.
func (s *Source) Unrecorded() (from, to time.Time, gap flow.Gap, ok bool) {
	g, ok := s.guard.take(true)
	return g.from, g.to, g.record(), ok
}

// Fill implements input.Source.
func (s *Source) Fill(b *flow.Batch, now time.Time) (n int, more bool, err error) {
	m := &s.messages
	if s.others != nil {
		s.others.refresh()
	}
	if m.at == m.n {
		if s.handedOver {
			return 0, false, nil
		}
		full, err := m.read(s.sock.fd)
		if err != nil {
			return 0, false, err
		}
		if m.n == 0 {
			s.delivery.emptied = now
			return 0, false, nil
		}
		s.Stats.Reads.Add(1)
		if !full {
			s.delivery.emptied = now
		}
	}
	n = s.decode(b)
	return n, m.at < m.n || m.n == blockSlots, nil
}

// decode decodes messages of the block until it is through or the batch is full, and returns how many.
func (s *Source) decode(b *flow.Batch) (n int) {
	m := &s.messages
	received := time.Now().UnixNano()
	var events [flow.EventGap]uint64
	skipped := 0
	for !b.Full() {
		msg, err := m.next(&s.Stats)
		if msg == nil {
			if err == nil {
				break
			}
			s.unreadable(err, msg)
			continue
		}
		n++
		r, odd, err := decode(msg, b)
		if err != nil {
			s.unreadable(err, msg)
			continue
		}
		skipped += odd
		if s.others != nil {
			if id, ok := m.block.nsid(m.slot); ok && !s.others.place(b, r, id) {
				b.Drop()
				continue
			}
		}
		r.Received = received
		events[r.Event]++
		if r.Event == flow.EventDestroy {
			s.ended(r)
		}
	}
	for e, n := range events {
		if n > 0 {
			s.Stats.Events[e].Add(n)
		}
	}
	if skipped > 0 {
		s.Stats.Skipped.Add(uint64(skipped))
	}
	return n
}

// ended takes note of the end of a flow.
func (s *Source) ended(r *flow.Record) {
	if r.Has&flow.HasCounters == 0 {
		s.Stats.WithoutCounters.Add(1)
	}
	if r.Start == 0 {
		s.Stats.WithoutStart.Add(1)
	}
	s.table.ended(r)
}

// unreadable is what could not be decoded and is not yet in a gap.
type unreadable struct {
	from    time.Time // what is lost happened after
	n       uint64
	unknown bool // there may be more
}

// unreadable takes note of a message that could not be decoded. msg is nil if it is not known where the message ends.
func (s *Source) unreadable(err error, msg []byte) {
	s.Stats.Malformed.Add(1)
	if ce := s.opts.Log.Check(zap.DebugLevel, "malformed message"); ce != nil {
		ce.Write(zap.Error(err), zap.String("hex", hex.EncodeToString(msg)))
	}
	if msg != nil && !s.cfg.recorded(msg) {
		return // it would have become no record
	}
	if s.lost.n == 0 {
		s.lost.from = s.delivery.caught
	}
	s.lost.n++
	s.lost.unknown = s.lost.unknown || msg == nil
}

// Turn implements input.Source.
func (s *Source) Turn(now time.Time, sink input.Sink) (busy bool) {
	if now.Sub(s.lookedAt) >= lookEvery {
		s.lookedAt = now
		s.look(now, sink, false)
	}
	s.delivery.catchUp(now)
	if s.others != nil {
		s.others.turn(now, s.delivery.caught, s.delivery.withheld(now), sink)
	}
	return s.table.turn(now, sink)
}

// look tells of what was lost since the last look. last says that there is no other one.
func (s *Source) look(now time.Time, sink input.Sink, last bool) {
	s.countDrops(now, sink)
	if g, ok := s.guard.take(last); ok {
		sink.Gap(g.from, g.to, g.record())
	}
	if l := s.lost; l.n > 0 {
		s.opts.Log.Error("messages of the kernel could not be read, and are lost; a gap says how many",
			zap.Uint64("messages", l.n), zap.String("remedy", "report this, with log.level: debug, which logs their bytes"))
		sink.Gap(l.from, now, flow.Gap{Cause: flow.CauseUnreadable, Lost: l.n, LostKnown: !l.unknown})
		s.lost = unreadable{}
	}
	s.switches.look(now, last, func(from, to time.Time) { sink.Gap(from, to, flow.Gap{Cause: flow.CauseUntracked}) })
}

// countDrops reads the kernel's count of drops. Under best-effort delivery what it has grown by is lost, and a gap says
// so, from the last look to this one.
func (s *Source) countDrops(now time.Time, sink input.Sink) {
	drops, err := s.sock.drops()
	if err != nil {
		s.opts.Log.Error("cannot tell how many events the kernel dropped", zap.Error(err))
		s.delivery.lookedAt = now
		return
	}
	from, lost := s.delivery.count(drops, now)
	s.Stats.Drops.Add(uint64(lost))
	if lost > 0 && !s.delivery.reliable {
		sink.Gap(from, now, flow.Gap{Cause: flow.CauseOverrun, Lost: uint64(lost), LostKnown: true})
	}
}

// Due implements input.Source.
func (s *Source) Due(now time.Time) time.Duration {
	wait := s.table.due(now)
	if s.others != nil && s.others.waiting() {
		wait = min(wait, lookEvery)
	}
	return wait
}

// ReadUntil implements input.Source.
func (s *Source) ReadUntil() time.Time { return s.delivery.caught }

// Requested implements input.Source.
func (s *Source) Requested() bool { return s.table.unfinished() }

// RequestOpen asks for an open record of every flow in the table. Any goroutine may call it.
func (s *Source) RequestOpen() {
	s.table.requested.Store(true)
	s.Wake()
}

// Checkpoints asks for a reading of the table each time so much has passed: flows that are older than that get an open
// record for archives. 0 ends that. Any goroutine may call it.
func (s *Source) Checkpoints(every time.Duration) {
	if s.table.checkpoints.Swap(int64(every)) != int64(every) {
		s.Wake()
	}
}

// Wait implements input.Source.
func (s *Source) Wait(d time.Duration) error {
	fds := [...]unix.PollFd{{Fd: int32(s.sock.fd), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	// Rounded up, so that the wait for a due batch does not end just before it is due.
	_, err := unix.Poll(fds[:], int((d+time.Millisecond-1)/time.Millisecond))
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for conntrack events: %w", err)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(s.wake, count[:]) // or the next wait would end at once
	}
	return nil
}

// Wake implements input.Source.
func (s *Source) Wake() {
	_, _ = unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // any count above 0 makes the eventfd readable
}

// Withheld implements input.Source.
func (s *Source) Withheld(now time.Time, sink input.Sink) bool {
	s.countDrops(now, sink)
	return s.delivery.withheld(now)
}

// Leave implements input.Source. The guard goes on: a successor's socket is still a member.
func (s *Source) Leave() (left bool, err error) {
	if s.opts.Handover {
		s.handedOver = true
		s.delivery.catchUp(time.Now())
		return false, nil
	}
	s.delivery.caught = time.Now()
	defer s.guard.hold()()
	return true, s.sock.leaveAll()
}

// Finish implements input.Source.
func (s *Source) Finish(now time.Time, sink input.Sink) {
	s.look(now, sink, true)
	if s.others != nil {
		s.others.finish(now, sink)
	}
	s.table.finish()
}
