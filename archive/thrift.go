package archive

import "encoding/binary"

// thriftReader reads structures in Thrift's compact protocol, as Parquet's headers and footers are written. What is of no
// use is skipped without being made anything of: a footer describes a thousand columns, of which a question needs five.
// Bytes that are none set bad, and everything reads as zero then.
type thriftReader struct {
	b   []byte
	at  int // what comes next; the slice itself stays, as a pointer that is written a million times has the collector look
	bad bool
}

// Types of fields.
const (
	thriftTrue   = 1
	thriftFalse  = 2
	thriftByte   = 3
	thriftI16    = 4
	thriftI32    = 5
	thriftI64    = 6
	thriftDouble = 7
	thriftBinary = 8
	thriftList   = 9
	thriftSet    = 10
	thriftMap    = 11
	thriftStruct = 12
)

func (t *thriftReader) fail() {
	t.at, t.bad = len(t.b), true
}

func (t *thriftReader) byte() byte {
	if t.at >= len(t.b) {
		t.fail()
		return 0
	}
	t.at++
	return t.b[t.at-1]
}

func (t *thriftReader) uvarint() uint64 {
	if t.at < len(t.b) && t.b[t.at] < 0x80 {
		t.at++
		return uint64(t.b[t.at-1])
	}
	v, n := binary.Uvarint(t.b[t.at:])
	if n <= 0 {
		t.fail()
		return 0
	}
	t.at += n
	return v
}

// int reads an integer of any size.
func (t *thriftReader) int() int64 {
	v := t.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

// bytes reads a string. It is part of the buffer.
func (t *thriftReader) bytes() []byte {
	n := t.uvarint()
	if n > uint64(len(t.b)-t.at) {
		t.fail()
		return nil
	}
	b := t.b[t.at : t.at+int(n) : t.at+int(n)]
	t.at += int(n)
	return b
}

// list reads the head of a list: the type of its elements, and how many there are.
func (t *thriftReader) list() (kind byte, n int) {
	head := t.byte()
	count := uint64(head >> 4)
	if count == 15 {
		count = t.uvarint()
	}
	if count > uint64(len(t.b)-t.at) { // each has a byte at least
		t.fail()
		return 0, 0
	}
	return head & 15, int(count)
}

// fields calls do with each field of a structure. do reads the field; one of which it reads nothing is skipped.
func (t *thriftReader) fields(do func(id int16, kind byte)) {
	for id := int16(0); ; {
		head := t.byte()
		if head == 0 || t.bad {
			return
		}
		if delta := head >> 4; delta != 0 {
			id += int16(delta)
		} else {
			id = int16(t.int())
		}
		at := t.at
		if do(id, head&15); t.at == at {
			t.skip(head&15, 0)
		}
	}
}

// skip passes over a value of a field.
func (t *thriftReader) skip(kind byte, depth int) {
	if depth > 32 {
		t.fail()
		return
	}
	switch kind {
	case thriftTrue, thriftFalse:
	case thriftByte:
		t.byte()
	case thriftI16, thriftI32, thriftI64:
		t.uvarint()
	case thriftDouble:
		if len(t.b)-t.at < 8 {
			t.fail()
			return
		}
		t.at += 8
	case thriftBinary:
		t.bytes()
	case thriftList, thriftSet:
		kind, n := t.list()
		for range n {
			t.skipElement(kind, depth+1)
		}
	case thriftMap:
		n := t.uvarint()
		if n == 0 {
			return
		}
		kinds := t.byte()
		for ; n > 0 && !t.bad; n-- {
			t.skipElement(kinds>>4, depth+1)
			t.skipElement(kinds&15, depth+1)
		}
	case thriftStruct:
		for !t.bad {
			head := t.byte()
			if head == 0 {
				return
			}
			if head>>4 == 0 {
				t.uvarint()
			}
			t.skip(head&15, depth+1)
		}
	default:
		t.fail()
	}
}

// skipElement is skip for an element of a list, where a truth value takes a byte.
func (t *thriftReader) skipElement(kind byte, depth int) {
	if kind == thriftTrue || kind == thriftFalse {
		t.byte()
		return
	}
	t.skip(kind, depth)
}
