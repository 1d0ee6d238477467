package format

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/ctlogd/ctlogd/flow"
)

const hexDigits = "0123456789abcdef"

// digits2 are the numbers 00 to 99, hex2 the bytes 00 to ff: a pair of digits is one store of two bytes.
var digits2, hex2 = func() (dec [100][2]byte, hex [256][2]byte) {
	for i := range dec {
		dec[i] = [2]byte{byte('0' + i/10), byte('0' + i%10)}
	}
	for i := range hex {
		hex[i] = [2]byte{hexDigits[i>>4], hexDigits[i&15]}
	}
	return dec, hex
}()

// appendUint appends v in decimal. A record holds some fifteen numbers of all lengths, and a processor that has to guess
// each length pays for its errors more than for the digits: so up to eight digits are made at once, without a branch.
func appendUint(b []byte, v uint64) []byte {
	if v < 10 {
		return append(b, byte('0'+v))
	}
	if v >= 1e8 {
		return appendDigits(appendUint(b, v/1e8), v%1e8)
	}
	d := digits8(v)
	skip := bits.TrailingZeros64(d) &^ 7 // leading zeros
	n := len(b) + 8 - skip/8
	return binary.LittleEndian.AppendUint64(b, (d|0x3030303030303030)>>skip)[:n]
}

// appendDigits appends v, which is below 10^8, as eight digits.
func appendDigits(b []byte, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(b, digits8(v)|0x3030303030303030)
}

// digits8 returns the eight digits of v, which is below 10^8, each in a byte, the first in the lowest: halves are split
// off until each lane holds one digit. The factors divide by 100 and by 10 what is below 10^4 and below 100.
func digits8(v uint64) uint64 {
	v = v/10000 | v%10000<<32
	q := v * 10486 >> 20 & 0x0000007f_0000007f
	v = q | (v-100*q)<<16
	q = v * 103 >> 10 & 0x000f000f_000f000f
	return q | (v-10*q)<<8
}

// octets are the numbers 0 to 255 as text with a dot behind, and the length of it.
var octets = func() (t [256]struct {
	text [4]byte
	n    uint8
}) {
	for i := range t {
		s := append(appendUint(nil, uint64(i)), '.')
		t[i].n = uint8(copy(t[i].text[:], s))
	}
	return t
}()

// appendAddr appends a in the form of RFC 5952.
func appendAddr(b []byte, a *flow.Addr, v6 bool) []byte {
	if v6 {
		t := flow.Tuple{Src: *a, V6: true}
		return t.SrcAddr().AppendTo(b)
	}
	const longest = 16 // four octets, each with its dot
	n := len(b)
	b = slices.Grow(b, longest)
	d := b[n : n+longest]
	i := 0
	for _, c := range a[12:] {
		o := &octets[c]
		*(*[4]byte)(d[i:]) = o.text // what is too much, the next octet overwrites
		i += int(o.n)
	}
	return b[:n+i-1]
}

// Clock writes times, remembering the dates of some days. The zero value is ready.
type Clock struct {
	days [16]struct {
		day  int64    // since 1970
		text [11]byte // 2006-01-02T; zeros: not set
	}
}

// timeLen is the length of 2006-01-02T15:04:05.000000000Z.
const timeLen = 30

// Append appends ns since 1970 as RFC 3339 in UTC with nine digits of a second, which the encoders' readers may rely
// on: such times sort as strings do.
func (c *Clock) Append(b []byte, ns int64) []byte {
	sec, frac := ns/1e9, ns%1e9
	if frac < 0 {
		sec, frac = sec-1, frac+1e9
	}
	day, rest := sec/86400, sec%86400
	if rest < 0 {
		day, rest = day-1, rest+86400
	}
	d := &c.days[uint64(day)%uint64(len(c.days))]
	if d.day != day || d.text[0] == 0 {
		d.day = day
		time.Unix(sec, 0).UTC().AppendFormat(d.text[:0], "2006-01-02T")
	}

	at := len(b)
	b = slices.Grow(b, timeLen)[:at+timeLen]
	t := (*[timeLen]byte)(b[at:])
	*(*[11]byte)(t[:]) = d.text
	s, f := uint32(rest), uint32(frac)
	*(*[2]byte)(t[11:]) = digits2[s/3600]
	t[13] = ':'
	*(*[2]byte)(t[14:]) = digits2[s/60%60]
	t[16] = ':'
	*(*[2]byte)(t[17:]) = digits2[s%60]
	t[19] = '.'
	hi, lo := f/10000, f%10000 // five digits and four
	t[20] = byte('0' + hi/10000)
	*(*[2]byte)(t[21:]) = digits2[hi/100%100]
	*(*[2]byte)(t[23:]) = digits2[hi%100]
	*(*[2]byte)(t[25:]) = digits2[lo/100]
	*(*[2]byte)(t[27:]) = digits2[lo%100]
	t[29] = 'Z'
	return b
}

// AppendMicros is Append with six digits of a second.
func (c *Clock) AppendMicros(b []byte, ns int64) []byte {
	b = c.Append(b, ns)
	end := len(b) - len("000Z")
	b[end] = 'Z'
	return b[:end+1]
}

// appendHex appends p in lower-case hex.
func appendHex(b, p []byte) []byte {
	at := len(b)
	b = slices.Grow(b, 2*len(p))[:at+2*len(p)]
	d := b[at:]
	for i, c := range p {
		*(*[2]byte)(d[2*i:]) = hex2[c]
	}
	return b
}

// appendString appends s, which may be any bytes, as a JSON string (RFC 8259 section 7). What is not UTF-8 becomes
// U+FFFD. U+2028 and U+2029 are escaped for readers that take them for line ends, DEL and the C1 controls for terminals
// that obey them.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	if plain(s) {
		return append(append(b, s...), '"')
	}
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < 0x7f {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			b = append(b, s[done:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			case '\b':
				b = append(b, `\b`...)
			case '\f':
				b = append(b, `\f`...)
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			done = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(append(b, s[done:i]...), `\ufffd`...)
			done = i + n
		case r <= '\u009f':
			b = append(append(b, s[done:i]...), '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
			done = i + n
		case r == '\u2028' || r == '\u2029':
			b = append(append(b, s[done:i]...), `\u202`...)
			b = append(b, hexDigits[r&15])
			done = i + n
		}
		i += n
	}
	return append(append(b, s[done:]...), '"')
}

// plain reports whether s is ASCII without anything that is escaped, eight bytes at a time: nearly all text is.
func plain(s string) bool {
	if len(s) < 8 {
		for i := range len(s) {
			if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
				return false
			}
		}
		return true
	}
	const each, tops = 0x0101010101010101, 0x8080808080808080
	for {
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		// A byte that is less than what is subtracted from it gets its top bit, and borrows from those above: all is false then.
		if (w|(w-' '*each)|(w^'"'*each-each)|(w^'\\'*each-each)|(w^0x7f*each-each))&tops != 0 {
			return false
		}
		switch {
		case len(s) == 8:
			return true
		case len(s) < 16:
			s = s[len(s)-8:] // some once more
		default:
			s = s[8:]
		}
	}
}

// appendBits appends the names of v's bits as a JSON array; a bit without a name is called by its number, "bit16".
func appendBits(b []byte, v uint32, names []string) []byte {
	if v == 0 {
		return append(b, "[]"...)
	}
	return append(appendList(append(b, `["`...), v, names, `","`), `"]`...)
}

// appendNames appends the names of v's bits with commas between them.
func appendNames(b []byte, v uint32, names []string) []byte { return appendList(b, v, names, ",") }

func appendList(b []byte, v uint32, names []string, between string) []byte {
	for i, first := 0, true; i < 32; i++ {
		if v>>i&1 == 0 {
			continue
		}
		if !first {
			b = append(b, between...)
		}
		first = false
		if i < len(names) {
			b = append(b, names[i]...)
		} else {
			b = appendUint(append(b, "bit"...), uint64(i))
		}
	}
	return b
}
