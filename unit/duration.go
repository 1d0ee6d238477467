package unit

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// DurationHelp says how a duration is written, for error messages.
const DurationHelp = "a duration such as 500ms, 30s, 1h30m or 7d"

// ParseDuration reads a duration as time.ParseDuration does, and days and weeks besides, in front of what is smaller:
// 7d, 2w, 1d12h. A day has 24 hours.
func ParseDuration(text string) (time.Duration, error) {
	rest, sum := text, time.Duration(0)
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		i := strings.Index(rest, u.name)
		if i < 0 {
			continue
		}
		n, err := strconv.ParseUint(rest[:i], 10, 63)
		if err != nil || n > uint64((math.MaxInt64-sum)/u.unit) {
			return 0, fmt.Errorf("%q is not %s", text, DurationHelp)
		}
		sum += time.Duration(n) * u.unit
		if rest = rest[i+1:]; rest == "" {
			return sum, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || rest != text && (d < 0 || rest[0] == '+' || d > math.MaxInt64-sum) {
		return 0, fmt.Errorf("%q is not %s", text, DurationHelp)
	}
	return sum + d, nil
}

// FormatDuration writes a duration as people do: 30d, 36h, 1h30m, 500ms.
func FormatDuration(d time.Duration) string {
	const day = 24 * time.Hour
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	text := d.String()
	if d%time.Minute == 0 && d != 0 {
		text = strings.TrimSuffix(text, "0s")
	}
	if d%time.Hour == 0 && d != 0 {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
