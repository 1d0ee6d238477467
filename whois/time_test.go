package whois

import (
	"strings"
	"testing"
	"time"
)

var testNow = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func TestParseTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	second, minute := int64(time.Second), int64(time.Minute)
	for _, c := range []struct {
		text    string
		want    string // of From, in UTC
		width   int64
		assumed bool
	}{
		{"2026-11-27 11:03:07", "2026-11-27T10:03:07Z", second, true},
		{"2026-11-27 11:03", "2026-11-27T10:03:00Z", minute, true},
		{"2026-07-27 11:03:07", "2026-07-27T09:03:07Z", second, true},
		{"2026-11-27 11:03:07 UTC", "2026-11-27T11:03:07Z", second, false},
		{"2026-11-27 11:03:07Z", "2026-11-27T11:03:07Z", second, false},
		{"2026-11-27T11:03:07+01:00", "2026-11-27T10:03:07Z", second, false},
		{"2026-11-27 11:03:07.25 -0330", "2026-11-27T14:33:07.25Z", int64(10 * time.Millisecond), false},
		{"2026-11-27T11:03:07.123456789Z", "2026-11-27T11:03:07.123456789Z", 1, false},
		{"2026/11/27 11:03:07 CET", "2026-11-27T10:03:07Z", second, false},
		{"2026-11-27 11:03:07 WET", "2026-11-27T11:03:07Z", second, false},
		{"2026-07-27 11:03:07 CEST", "2026-07-27T09:03:07Z", second, false},
		{"2026-07-27 11:03:07 America/New_York", "2026-07-27T15:03:07Z", second, false},
		{"2026-11-27 11:03:07 UTC+2", "2026-11-27T09:03:07Z", second, false},
		{"Fri, 27 Nov 2026 11:03:07 +0100", "2026-11-27T10:03:07Z", second, false},
		{"Fri, 27 Nov 2026 11:03:07 +0100 (CET)", "2026-11-27T10:03:07Z", second, false},
		{"27 Nov 2026 11:03:07 GMT", "2026-11-27T11:03:07Z", second, false},
		{"Fri Nov 27 11:03:07 2026", "2026-11-27T10:03:07Z", second, true},
		{"Fri Nov 27 11:03:07 EST 2026", "2026-11-27T16:03:07Z", second, false},
		{"27/Nov/2026:11:03:07 +0000", "2026-11-27T11:03:07Z", second, false},
		{"[27/Nov/2026:11:03:07 +0000]", "2026-11-27T11:03:07Z", second, false},
		{"1795777387", "2026-11-27T11:03:07Z", second, false},
		{"1795777387.5", "2026-11-27T11:03:07.5Z", int64(100 * time.Millisecond), false},
		{"1795777387123", "2026-11-27T11:03:07.123Z", int64(time.Millisecond), false},
		{"1795777387000", "2026-11-27T11:03:07Z", second, false},
		{"1795777387.00", "2026-11-27T11:03:07Z", second, false},
		{"2026-11-27T11:03:07.000Z", "2026-11-27T11:03:07Z", second, false},
		{"2026-11-27 11:03:07.00 -0330", "2026-11-27T14:33:07Z", second, false},
		{"2026-11-27T11:03:07.050Z", "2026-11-27T11:03:07.05Z", int64(time.Millisecond), false},
		{"1795777387123456789", "2026-11-27T11:03:07.123456789Z", 1, false},
		{"10m ago", "2026-11-27T11:50:00Z", 1, false},
		{"2 hours ago", "2026-11-27T10:00:00Z", 1, false},
		{"1.5d ago", "2026-11-26T00:00:00Z", 1, false},
		{"now", "2026-11-27T12:00:00Z", 1, false},
		{"  2026-11-27   11:03:07   UTC ", "2026-11-27T11:03:07Z", second, false},
		{"27.11.2026 11:03:07", "2026-11-27T10:03:07Z", second, true},
		{"27.11.2026, 11:03 CET", "2026-11-27T10:03:00Z", minute, false},
		{"Nov 27, 2026 11:03:07 EST", "2026-11-27T16:03:07Z", second, false},
		{"Nov  7 2026 11:03:07 UTC", "2026-11-07T11:03:07Z", second, false},
		{"2026-10-25 01:59:59", "2026-10-24T23:59:59Z", second, true},
		{"2026-10-25 03:00:00", "2026-10-25T02:00:00Z", second, true},
		{"2016-12-31 23:59:60 UTC", "2017-01-01T00:00:00Z", second, false},
	} {
		m, err := ParseTime(c.text, testNow, berlin)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		got := time.Unix(0, m.From).UTC().Format(time.RFC3339Nano)
		if got != c.want || m.To-m.From+1 != c.width || m.Assumed != c.assumed {
			t.Errorf("%q: %s for %d ns, assumed %t; want %s for %d, %t", c.text, got, m.To-m.From+1, m.Assumed, c.want, c.width, c.assumed)
		}
	}
}

// A time that cannot be meant is refused in a sentence that says what to write.
func TestParseTimeRefuses(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"":                                        "no time; write it such as",
		"tomorrow":                                "is no time that can be read",
		"2026-11-27":                              "is no time that can be read",
		"2026-02-30 12:00:00":                     "there is no such day or hour",
		"2026-11-27 25:00:00":                     "there is no such day or hour",
		"2026-11-27 12:00:00 XYZ":                 `the zone "XYZ" is not known`,
		"2026-11-27 12:00:00 ../../etc/x":         "is not known",
		"2026-11-27 12:00:00 +25:00":              "there is no zone",
		"2026-11-27 12:00:00 CST":                 "may be -06:00 or +08:00; write the offset",
		"2026-11-27 12:00:00 IST":                 "write the offset",
		"2026-03-29 02:30:00":                     "never showed this",
		"2026-10-25 02:30:00":                     "showed this twice",
		"2026-10-25 02:30:00 Europe/Berlin":       "showed this twice",
		"1969-01-01 00:00:00 UTC":                 "of which there are records",
		"10 parsecs ago":                          "use s, m, h, d or w",
		"99999999999999d ago":                     "use s, m, h, d or w",
		"9999999999999999999":                     "can be read",
		"27/11/2026 12:00:00":                     "is no time that can be read",
		"11/12/2026 12:00:00 UTC":                 "is no time that can be read",
		"2026-11-27 02:00:00 PM UTC":              "without AM and PM",
		"2026-07-27 12:00:00 CET":                 "clocks in Europe/Berlin showed CEST, and many write CET the whole year; write the offset that is meant, +01:00 or +02:00",
		"2026-01-27 12:00:00 EDT":                 "clocks in America/New_York showed EST",
		"2026-07-27 12:00:00 EST":                 "-05:00 or -04:00",
		"2026-07-27 12:00:00 WET":                 "many write WET the whole year; write the offset that is meant, +00:00 or +01:00",
		"2026-04-05 01:45:00 Australia/Lord_Howe": "showed this twice",
		"2011-12-30 12:00:00 Pacific/Apia":        "never showed this",
		"2026-11-27 12:00.5 UTC":                  "is no time that can be read",
	} {
		if m, err := ParseTime(text, testNow, berlin); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, error %v, want %q", text, m, err, want)
		}
	}
	// With an offset, each of the two is one.
	for text, want := range map[string]string{"2026-10-25 02:30:00 +02:00": "2026-10-25T00:30:00Z", "2026-10-25 02:30:00 CET": "2026-10-25T01:30:00Z", "2026-10-25 02:30:00 CEST": "2026-10-25T00:30:00Z"} {
		if m, err := ParseTime(text, testNow, berlin); err != nil || time.Unix(0, m.From).UTC().Format(time.RFC3339) != want {
			t.Errorf("%q: %v, error %v, want %s", text, m, err, want)
		}
	}
}

// TestLocal: a machine whose clock shows UTC in winter alone is not in UTC, whenever it is asked.
func TestLocal(t *testing.T) {
	was := time.Local
	defer func() { time.Local = was }()
	for name, want := range map[string]string{"Europe/London": "2026-07-01T11:03:07Z", "UTC": "2026-07-01T12:03:07Z", "Africa/Abidjan": "2026-07-01T12:03:07Z",
		"America/New_York": "2026-07-01T16:03:07Z"} {
		l, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		time.Local = l
		for _, now := range []time.Time{testNow, testNow.AddDate(0, -5, 0)} {
			m, err := ParseTime("2026-07-01 12:03:07", now, local(now))
			if got := time.Unix(0, m.From).UTC().Format(time.RFC3339); err != nil || got != want {
				t.Errorf("in %s, asked in %s: %s, %v, want %s", name, now.Month(), got, err, want)
			}
		}
		if zone := local(testNow).String(); (zone == "UTC") != (want == "2026-07-01T12:03:07Z") {
			t.Errorf("%s is called %s", name, zone)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2026-11-27 11:03:07.25 -0330", "Fri, 27 Nov 2026 11:03:07 +0100 (CET)", "1795777387.5", "10m ago", "27/Nov/2026:11:03:07 +0000",
		"Fri Nov 27 11:03:07 EST 2026", "2026-11-27 11:03 Europe/Berlin", "now", "9223372036.9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseTime(s, testNow, time.UTC)
		if err == nil && (m.From > m.To || m.From < 0 || m.Zone == "") {
			t.Errorf("%q: %+v", s, m)
		}
		if err == nil && m.Assumed != (m.Assumed && m.Zone == "UTC") {
			t.Errorf("%q: assumed %q", s, m.Zone)
		}
	})
}
