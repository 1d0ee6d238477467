package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strconv"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ctlogd/ctlogd/flow"
)

func TestAppendUint(t *testing.T) {
	values := []uint64{0, math.MaxUint64, math.MaxUint32, math.MaxInt64}
	for p := uint64(1); ; p *= 10 {
		values = append(values, p-1, p, p+1, 5*p)
		if p > math.MaxUint64/10 {
			break
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		values = append(values, rng.Uint64()>>rng.UintN(64))
	}
	for _, v := range values {
		if got, want := string(appendUint([]byte("x"), v)), "x"+strconv.FormatUint(v, 10); got != want {
			t.Fatalf("appendUint(%d) = %q, want %q", v, got, want)
		}
	}
}

func TestClock(t *testing.T) {
	values := []int64{0, 1, -1, 999999999, 1e9, 86400e9 - 1, 86400e9, -86400e9, -86400e9 - 1, math.MaxInt64, math.MinInt64}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		values = append(values, rng.Int64N(4e18), int64(rng.Uint64()), values[rng.IntN(len(values))])
	}
	var c Clock
	for _, v := range values {
		want := time.Unix(0, v).UTC().Format("x2006-01-02T15:04:05.000000000Z")
		if got := string(c.Append([]byte("x"), v)); got != want {
			t.Fatalf("append(%d) = %q, want %q", v, got, want)
		}
	}
}

func TestAppendAddr(t *testing.T) {
	for _, s := range []string{
		"0.0.0.0", "255.255.255.255", "1.20.100.9", "192.0.2.33", "::", "::1", "2001:db8::1:0:0:1", "::ffff:192.0.2.1",
		"2001:db8:1:2:3:4:5:6",
	} {
		a := netip.MustParseAddr(s)
		addr := flow.AddrFrom(a)
		if got := string(appendAddr([]byte("x"), &addr, a.Is6())); got != "x"+s {
			t.Errorf("appendAddr(%s) = %q", s, got)
		}
	}
	for i := range 256 {
		a := netip.AddrFrom4([4]byte{byte(i), byte(255 - i), byte(i * 7), byte(i)})
		addr := flow.AddrFrom(a)
		if got := string(appendAddr(nil, &addr, false)); got != a.String() {
			t.Errorf("appendAddr(%s) = %q", a, got)
		}
	}
}

func TestAppendBits(t *testing.T) {
	names := []string{"a", "b", "c"}
	for _, tt := range []struct {
		bits uint32
		want string
	}{
		{0, `[]`}, {1, `["a"]`}, {6, `["b","c"]`}, {1<<31 | 1<<3 | 1, `["a","bit3","bit31"]`},
	} {
		if got := string(appendBits(nil, tt.bits, names)); got != tt.want {
			t.Errorf("appendBits(%#x) = %s, want %s", tt.bits, got, tt.want)
		}
	}
}

// TestPlain puts each byte into each place of texts of many lengths.
func TestPlain(t *testing.T) {
	for n := 1; n < 30; n++ {
		text := bytes.Repeat([]byte("x"), n)
		for i := range n {
			for c := range 256 {
				text[i] = byte(c)
				if want := c >= ' ' && c != '"' && c != '\\' && c < 0x7f; plain(string(text)) != want {
					t.Fatalf("plain(%q) is not %v", text, want)
				}
			}
			text[i] = 'x'
		}
	}
}

// FuzzAppendString holds the escaping to that of encoding/json, byte for byte, but for what terminals obey.
func FuzzAppendString(f *testing.F) {
	for _, s := range []string{
		"", "system_u:object_r:unlabeled_t:s0", `a"b\c/`, "\x00\x01\x1f\x7f", "\b\f\n\r\t", "gr\u00fc\u00df",
		"\u009b31m\u0080\u00a0", "\u2027\u2028\u2029\u202a",
		"\xff", "\xe2\x80", "\xe2\x80\xa8", "\xed\xa0\x80", "\xf0\x9f\x98\x80", "\xf4\x90\x80\x80", "<&>", "\ufffd",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(s); err != nil {
			t.Fatal(err)
		}
		obeyed := regexp.MustCompile("[\x7f\u0080-\u009f]")
		escaped := obeyed.ReplaceAllStringFunc(want.String(), func(c string) string {
			r, _ := utf8.DecodeRuneInString(c)
			return fmt.Sprintf(`\u%04x`, r)
		})
		got := appendString([]byte("x"), s)
		if string(got)+"\n" != "x"+escaped {
			t.Errorf("appendString(%q) = %s, want x%s", s, got, escaped)
		}
	})
}
