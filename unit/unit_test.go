package unit

import (
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "4096": 4096, "64KiB": 64 << 10, "64 MiB": 64 << 20, "1GiB": 1 << 30, "2TiB": 2 << 40, "10MB": 10e6, "1kB": 1000,
		"7B": 7, "10G": 10 << 30, "10M": 10 << 20, "512k": 512 << 10, "512K": 512 << 10, "1T": 1 << 40, "10g": 10 << 30,
		"10mb": 10e6, "10mib": 10 << 20, "1gb": 1e9,
		"": -1, "G": -1, "-1G": -1, "1.5G": -1, "10X": -1, "10GG": -1, "10 0M": -1, "0x10": -1, "9999999999G": -1,
	} {
		var got Size
		err := got.UnmarshalText([]byte(text))
		if (err != nil) != (want < 0) || want >= 0 && got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	// What is written is read as what it was.
	for _, s := range []Size{0, 1, 1000, 1023, 1 << 10, 3 << 20, 10e6, 1 << 40, 1<<63 - 1} {
		var got Size
		if err := got.UnmarshalText([]byte(s.String())); err != nil || got != s {
			t.Errorf("%d is written %s and read as %d, %v", s, s, got, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"0s": 0, "0": 0, "500ms": 500 * time.Millisecond, "1h30m": 90 * time.Minute, "1d": day, "2w": 14 * day, "1w2d3h": 9*day + 3*time.Hour,
		"1d12h": 36 * time.Hour, "1d1.5h": 25*time.Hour + 30*time.Minute,
		"": -1, "5": -1, "d": -1, "-1d": -1, "1d-1h": -1, "1d+1h": -1, "1d2w": -1, "1dd": -1, "1d 1h": -1, "1.5d": -1, "99999999w": -1,
		"106751d24h": -1, "1y": -1,
	} {
		got, err := ParseDuration(text)
		if (err != nil) != (want < 0) || want >= 0 && got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	if got, err := ParseDuration("-30s"); err != nil || got != -30*time.Second { // its block says what is wrong with it
		t.Errorf("-30s: %v, %v", got, err)
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 500 * time.Millisecond: "500ms", time.Minute: "1m", 90 * time.Second: "1m30s",
		10 * time.Minute: "10m", 10 * time.Hour: "10h", 90 * time.Minute: "1h30m", 36 * time.Hour: "36h", 24 * time.Hour: "1d",
		720 * time.Hour: "30d", -time.Hour: "-1h"} {
		if got := FormatDuration(d); got != want {
			t.Errorf("%v is written %q, want %q", d, got, want)
		}
		if back, err := ParseDuration(want); err != nil || back != d {
			t.Errorf("%s is read as %v, %v", want, back, err)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	f.Add("1w2d3h4m5s")
	f.Add("-1h")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseDuration(text)
		std, stdErr := time.ParseDuration(text)
		if stdErr == nil && (err != nil || got != std) {
			t.Errorf("%q: %v, %v; the library says %v", text, got, err, std)
		}
		if err == nil && stdErr != nil && got < 0 {
			t.Errorf("%q: %v", text, got)
		}
	})
}

func FuzzSize(f *testing.F) {
	f.Add("10G")
	f.Fuzz(func(t *testing.T, text string) {
		var s Size
		if s.UnmarshalText([]byte(text)) == nil && s < 0 {
			t.Errorf("%q: %d", text, s)
		}
	})
}
