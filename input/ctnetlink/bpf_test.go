package ctnetlink

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// kernelFilter runs the program in the kernel, on any bytes and without rights: a datagram socket pair takes the same
// filters as a netlink socket. The VM of golang.org/x/net/bpf cannot stand in, it knows nothing of SKF_AD_NLATTR.
func kernelFilter(t *testing.T, in interest) (passes func(msg []byte) bool) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[0]); _ = unix.Close(fds[1]) })
	if err := attachFilter(fds[1], filterProgram(in)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	return func(msg []byte) bool {
		// The sender is not told of a message that the filter drops.
		if err := unix.Send(fds[0], msg, 0); err != nil && err != unix.EPERM {
			t.Fatal(err)
		}
		n, _, err := unix.Recvfrom(fds[1], buf, 0)
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		if err == nil && n != len(msg) {
			t.Fatalf("the filter cut a message of %d bytes to %d", len(msg), n)
		}
		return err == nil
	}
}

// wanted is the rule that the filter must follow, told by the decoded record.
func wanted(in interest, r *flow.Record) bool {
	x := r.Extra
	dropped := in.drop != nil && in.drop(r.Event, r.Orig.V6, r.Orig.Proto)
	switch r.Event {
	case flow.EventNew:
		return x != nil && (x.Helper.Len() > 0 || x.HasMaster || in.labels && x.HasLabels) || in.news && !dropped
	case flow.EventUpdate:
		return in.labels && x != nil && x.HasLabels || in.updates && !dropped
	case flow.EventDestroy:
		return !dropped || in.labels || r.Status&(flow.StatusExpected|flow.StatusHelper) != 0
	}
	return true // expectations are joined only if they are wanted
}

func TestFilterProgram(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	some := func(share int) func(flow.Event, bool, flow.Proto) bool {
		var table [flow.EventGap][2][256]bool
		for e := range table {
			for f := range 2 {
				for p := range 256 {
					table[e][f][p] = rnd.IntN(100) < share
				}
			}
		}
		return func(e flow.Event, v6 bool, p flow.Proto) bool {
			f := 0
			if v6 {
				f = 1
			}
			return table[e][f][p]
		}
	}
	only := func(protos ...flow.Proto) func(flow.Event, bool, flow.Proto) bool {
		return func(_ flow.Event, _ bool, p flow.Proto) bool {
			for _, q := range protos {
				if p == q {
					return true
				}
			}
			return false
		}
	}
	drops := map[string]func(flow.Event, bool, flow.Proto) bool{
		"nothing": nil, "icmp": only(flow.ICMP, flow.ICMPv6), "few": some(3), "half": some(50), "most": some(97), "all": some(100),
		"ipv6": func(_ flow.Event, v6 bool, _ flow.Proto) bool { return v6 },
	}
	for name, drop := range drops {
		for bits := range 8 {
			in := interest{news: bits&1 != 0, updates: bits&2 != 0, labels: bits&4 != 0, drop: drop}
			t.Run(fmt.Sprintf("%s news=%v updates=%v labels=%v", name, in.news, in.updates, in.labels), func(t *testing.T) {
				passes := kernelFilter(t, in)
				passed, dropped := 0, 0
				for _, msg := range append(corpus(t), everyProto()...) {
					r, _, err := decode(msg, flow.NewBatch(1, nil))
					if err != nil {
						t.Fatal(err)
					}
					want := wanted(in, r)
					if got := passes(msg); got != want {
						t.Errorf("%v %v %x passes: %v, want %v", r.Event, r.Orig.Proto, msg, got, want)
					}
					if want {
						passed++
					} else {
						dropped++
					}
				}
				t.Logf("%d instructions, %d messages pass, %d do not", len(filterProgram(in)), passed, dropped)
			})
		}
	}
}

// everyProto returns an event of each kind for each protocol and family.
func everyProto() (msgs [][]byte) {
	for p := range 256 {
		for _, kind := range []struct{ typ, flags uint16 }{{msgNew, flagsNew}, {msgNew, 0}, {msgDelete, 0}} {
			msgs = append(msgs, message(subsysCT<<8|kind.typ, kind.flags, 0, v4Tuple(ctaTupleOrig, 1, 2, flow.Proto(p))))
			v6 := message(subsysCT<<8|kind.typ, kind.flags, 0, attribute(ctaTupleOrig|0x8000,
				attribute(ctaTupleIP|0x8000, attribute(ctaIPv6Src, make([]byte, 16)), attribute(ctaIPv6Dst, make([]byte, 16))),
				attribute(ctaTupleProto|0x8000, attribute(ctaProtoNum, []byte{byte(p)}))))
			v6[familyOffset] = unix.AF_INET6
			msgs = append(msgs, v6)
		}
	}
	return msgs
}

// TestFilterPassesOddMessages holds the filter to the rule that what it does not understand is user space's to judge:
// it is counted there.
func TestFilterPassesOddMessages(t *testing.T) {
	passes := kernelFilter(t, interest{drop: func(flow.Event, bool, flow.Proto) bool { return true }})
	for name, msg := range map[string][]byte{
		"other subsystem":            message(8<<8, 0, 0),
		"expectation":                message(subsysExp<<8, flagsNew, 0),
		"unknown type of conntrack":  message(subsysCT<<8|7, 0, 0),
		"destroy of neither family":  func() []byte { m := message(subsysCT<<8|msgDelete, 0, 0); m[familyOffset] = 7; return m }(),
		"netlink's own overrun note": func() []byte { m := message(4, 0, 0); binary.NativeEndian.PutUint32(m, 20); return m }(),
	} {
		if !passes(msg) {
			t.Errorf("%s: dropped, want it to pass", name)
		}
	}
}
