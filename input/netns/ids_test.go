package netns

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// answer returns a message to the request seq: an id, or, if typ is NLMSG_ERROR or NLMSG_DONE, the error number v.
func answer(typ uint16, seq uint32, v int32) []byte {
	body := binary.NativeEndian.AppendUint32(nil, uint32(v))
	if typ == unix.RTM_NEWNSID {
		body = append(make([]byte, rtgenmsg), attributes(attrNSID, v)...)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return append(append(b, 0, 0, 0, 0), body...)
}

// TestLateAnswers: an answer that comes too late, whatever it is, is not taken for that to the next question.
func TestLateAnswers(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	i := &ids{fd: pair[0], notice: -1, buf: make([]byte, 4096)}
	defer i.close()
	kernel := pair[1]
	defer unix.Close(kernel)
	// At once: the test need not wait for an answer that does not come.
	if err := unix.SetNonblock(i.fd, true); err != nil {
		t.Fatal(err)
	}
	say := func(messages ...[]byte) {
		t.Helper()
		for _, m := range messages {
			if _, err := unix.Write(kernel, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	asked := func() (seq uint32) {
		t.Helper()
		var b [256]byte
		if n, err := unix.Read(kernel, b[:]); err != nil || n < unix.SizeofNlMsghdr {
			t.Fatalf("%d bytes asked, %v", n, err)
		}
		return binary.NativeEndian.Uint32(b[8:])
	}
	var late []uint32
	for range 3 {
		if id, err := i.of(7); !errors.Is(err, unix.EAGAIN) || id != notAssigned {
			t.Fatalf("without an answer: %d, %v", id, err)
		}
		late = append(late, asked())
	}
	say(answer(unix.RTM_NEWNSID, late[0], 41), answer(unix.NLMSG_ERROR, late[1], -int32(unix.EPERM)), answer(unix.NLMSG_DONE, late[2], 0))
	next := late[2] + 1
	say(answer(unix.RTM_NEWNSID, next, 42))
	if id, err := i.of(8); err != nil || id != 42 {
		t.Errorf("the answer to another question was taken: %d, %v", id, err)
	}
	asked()

	say(answer(unix.NLMSG_ERROR, next, 0), answer(unix.NLMSG_ERROR, next+1, -int32(unix.EEXIST)))
	if err := i.give(8, 43); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the answer to another request was taken: %v", err)
	}
	asked()

	// Of a list, too, which is several messages, in datagrams of several.
	say(append(answer(unix.RTM_NEWNSID, next+1, 1), answer(unix.RTM_NEWNSID, next+2, 2)...),
		append(answer(unix.NLMSG_DONE, next, 0), answer(unix.RTM_NEWNSID, next+2, 3)...), answer(unix.NLMSG_DONE, next+2, 0))
	var list []int32
	if err := i.all(func(id int32) { list = append(list, id) }); err != nil || len(list) != 2 || list[0] != 2 || list[1] != 3 {
		t.Errorf("the list is %v, %v", list, err)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add(answer(unix.RTM_NEWNSID, 1, 7))
	f.Add(append(answer(unix.NLMSG_ERROR, 2, -1), answer(unix.NLMSG_DONE, 3, 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		eachMessage(b, func(_ uint16, _ uint32, body []byte) { nsid(body) })
	})
}
