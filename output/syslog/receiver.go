package syslog

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/output/datagram"
)

// receiver is one of the configured receivers.
type receiver struct {
	address
	peer *datagram.Peer // over UDP; else nil
}

// lookUpEvery is how old the address of a receiver's name may be over UDP, where nothing but an answer tells that it listens
// there.
const lookUpEvery = time.Minute

func (w *Writer) newReceiver(a address) *receiver {
	r := &receiver{address: a}
	if a.Scheme == "udp" {
		r.peer = &datagram.Peer{
			Host: a.Host, Port: a.Port, Resolve: w.sockets.Resolver().LookupNetIP, Sockets: w.sockets, Refused: &w.counts.refused,
		}
	}
	return r
}

// UDP implements datagram.Receiver.
func (r *receiver) UDP() *datagram.Peer { return r.peer }

// dial begins a session with r.
func (w *Writer) dial(ctx context.Context, r *receiver) (transport, error) {
	switch r.Scheme {
	case "tcp", "tls":
		return w.dialStream(ctx, r.address)
	case "udp":
		s, err := r.peer.Dial(ctx, lookUpEvery)
		if err != nil {
			return nil, err
		}
		return &datagrams{Socket: s, kept: true}, nil
	}
	s, err := datagram.DialUnix(r.Host, &w.counts.refused)
	if err != nil {
		return nil, err
	}
	return &datagrams{Socket: s}, nil
}

// lookUpDue returns the receiver whose name is to be looked up again, nil if none is.
func (w *Writer) lookUpDue() *receiver {
	r := w.receivers[w.active]
	if w.session == nil || !r.peer.Named() {
		return nil
	}
	if asked := w.reopen.Swap(false); !asked && !r.peer.Stale(lookUpEvery) {
		return nil
	}
	return r
}

// lookUp has the name of the session's receiver looked up if that is due. If its session goes to where it is not any more,
// it ends, and the next begins. It lets go of the lock meanwhile: a name server may take its time.
func (w *Writer) lookUp(ctx context.Context) {
	r := w.lookUpDue()
	if r == nil {
		return
	}
	var targets []netip.AddrPort
	var err error
	w.tender.Unlocked(func() {
		asking, cancel := context.WithTimeout(ctx, w.cfg.DialTimeout)
		defer cancel()
		targets, err = r.peer.LookUp(asking)
	})
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		w.log.Warn("the receiver's name cannot be looked up; its session goes on with the address that it had",
			zap.Stringer("receiver", r.address), zap.Error(err))
	}
	was := r.peer.At()
	if !r.peer.Move(targets) || w.session == nil || r != w.receivers[w.active] {
		return
	}
	w.counts.moves.Add(1)
	w.log.Info("the receiver's address has changed", zap.Stringer("receiver", r.address), zap.String("was", was),
		zap.String("is", r.peer.At()))
	w.leave()
	if _, err := w.connect(ctx, nil); err != nil {
		w.log.Warn("records wait for a session", zap.Error(err))
	}
}

// Reopen has the name of the receiver looked up again, at once. Any goroutine may call it; it does not wait.
func (w *Writer) Reopen() error {
	w.reopen.Store(true)
	w.tender.Look()
	return nil
}
