// Package unit reads and writes quantities as people write them in a configuration.
package unit

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes. As text it is a whole number with an optional unit, in either case: 4096, 64KiB, 1GiB,
// 10MB. A lone K, M, G or T is binary, as other daemons and logrotate have it: 10G is 10GiB.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10},
}

// SizeHelp says how a Size is written, for error messages.
const SizeHelp = "a size such as 65536, 512KiB, 64MiB or 10G"

// UnmarshalText reads a size (encoding.TextUnmarshaler).
func (s *Size) UnmarshalText(text []byte) error {
	digits, factor := strings.TrimSpace(string(text)), int64(1)
	for _, u := range sizeUnits {
		if i := len(digits) - len(u.name); i >= 0 && strings.EqualFold(digits[i:], u.name) {
			digits, factor = strings.TrimSpace(digits[:i]), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/factor {
		return fmt.Errorf("%q is not %s", text, SizeHelp)
	}
	*s = Size(n * factor)
	return nil
}

// MarshalText writes the size in the largest binary unit that divides it (encoding.TextMarshaler).
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
