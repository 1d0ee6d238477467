package whois

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // a firewall may have none
)

// Moment is a time as somebody has written it: all instants that the text may mean. "12:03:07" is any of that second, and so is
// "12:03:07.000": programs write it that know no fractions.
type Moment struct {
	From, To int64 // ns since 1970, both included
	Zone     string
	Assumed  bool // the text has no zone, and Zone is what was taken
}

// zones are the abbreviations that mean one thing. Others are told apart by an offset.
var zones = map[string]int{
	"UTC": 0, "GMT": 0, "Z": 0, "WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "MEZ": 1, "MESZ": 2, "EET": 2, "EEST": 3, "MSK": 3,
	"EST": -5, "EDT": -4, "CDT": -5, "MDT": -6, "PST": -8, "PDT": -7, "AKST": -9, "AKDT": -8, "HST": -10,
	"JST": 9, "KST": 9, "AEST": 10, "AEDT": 11, "AWST": 8, "NZST": 12, "NZDT": 13, "HKT": 8, "SGT": 8, "SAST": 2,
}

// unclear are abbreviations that mean more than one thing.
var unclear = map[string]string{
	"IST": "+05:30, +02:00 or +01:00", "BST": "+01:00 or +06:00", "CST": "-06:00 or +08:00", "AST": "-04:00 or +03:00",
	"MST": "-07:00 or +08:00", "SST": "-11:00 or +08:00", "ECT": "-05:00 or -04:00", "ADT": "-03:00 or +04:00",
}

// pattern returns a regular expression that is compiled when it is first needed: every command of the program starts with
// what packages compile.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

var (
	ago = pattern(`^(\d+(?:\.\d+)?)\s*([a-z]+)\s+ago$`)
	// A date and a time of day, then perhaps a zone. Seconds and their fraction may be absent.
	// Of numbers alone, a date has its year first, or dots: 27/11 and 11/27 are not told apart.
	isoTime  = pattern(`^(\d{4}-\d{2}-\d{2}|\d{4}/\d{2}/\d{2})(?:[Tt_]|\s+)(\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?\s*(.*)$`)
	mailTime = pattern(`^(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+)?(\d{1,2}\s+(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s+\d{4})\s+(\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?\s*(.*)$`)
	dotTime  = pattern(`^(\d{1,2}\.\d{1,2}\.\d{4}),?\s+(\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?\s*(.*)$`)
	usTime   = pattern(`^((?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s+\d{1,2}),?\s+(\d{4}),?\s+(\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?\s*(.*)$`)
	ctime    = pattern(`^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\s+((?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s+\d{1,2})\s+(\d{2}:\d{2})(:\d{2})(?:\s+([A-Za-z/_]+))?\s+(\d{4})$`)
	webTime  = pattern(`^\[?(\d{1,2}/(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)/\d{4}):(\d{2}:\d{2})(:\d{2})(?:[.,](\d{1,9}))?\s*(.*?)\]?$`)
	offset   = pattern(`^(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2})?$`)
	comment  = pattern(`\s*\([A-Za-z0-9 .+:-]*\)$`)
	unixTime = pattern(`^(\d{9,19})(?:\.(\d{1,9}))?$`)
)

var units = map[string]time.Duration{
	"s": time.Second, "sec": time.Second, "second": time.Second, "m": time.Minute, "min": time.Minute, "minute": time.Minute,
	"h": time.Hour, "hour": time.Hour, "d": 24 * time.Hour, "day": 24 * time.Hour, "w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour,
}

const examples = `write it such as "2026-11-27 12:03:07 UTC", 2026-11-27T12:03:07+01:00, 1795780987 or "10m ago"`

// ParseTime reads a time. Without a zone in the text, zone is meant.
func ParseTime(text string, now time.Time, zone *time.Location) (m Moment, err error) {
	s := strings.Join(strings.Fields(text), " ")
	if s == "" {
		return m, errors.New("no time; " + examples)
	}
	if s == "now" {
		return Moment{From: now.UnixNano(), To: now.UnixNano(), Zone: "UTC"}, nil
	}
	if p := ago().FindStringSubmatch(strings.ToLower(s)); p != nil {
		unit, ok := units[p[2]]
		if !ok {
			unit, ok = units[strings.TrimSuffix(p[2], "s")]
		}
		n, err := strconv.ParseFloat(p[1], 64)
		if !ok || err != nil || n*float64(unit) > float64(100*365*24*time.Hour) {
			return m, fmt.Errorf("%q is no time: use s, m, h, d or w, as in \"10m ago\"", text)
		}
		at := now.Add(-time.Duration(n * float64(unit))).UnixNano()
		return Moment{From: at, To: at, Zone: "UTC"}, nil
	}
	if p := unixTime().FindStringSubmatch(s); p != nil {
		return unix(text, p[1], p[2])
	}
	date, clock, second, fraction, rest, layout := "", "", "", "", "", ""
	switch {
	case isoTime().MatchString(s):
		p := isoTime().FindStringSubmatch(s)
		date, clock, second, fraction, rest, layout = strings.ReplaceAll(p[1], "/", "-"), p[2], p[3], p[4], p[5], "2006-01-02"
	case mailTime().MatchString(s):
		p := mailTime().FindStringSubmatch(s)
		date, clock, second, fraction, rest, layout = p[1], p[2], p[3], p[4], p[5], "2 Jan 2006"
	case webTime().MatchString(s):
		p := webTime().FindStringSubmatch(s)
		date, clock, second, fraction, rest, layout = p[1], p[2], p[3], p[4], p[5], "2/Jan/2006"
	case dotTime().MatchString(s):
		p := dotTime().FindStringSubmatch(s)
		date, clock, second, fraction, rest, layout = p[1], p[2], p[3], p[4], p[5], "2.1.2006"
	case usTime().MatchString(s):
		p := usTime().FindStringSubmatch(s)
		date, clock, second, fraction, rest, layout = p[1]+" "+p[2], p[3], p[4], p[5], p[6], "Jan 2 2006"
	case ctime().MatchString(s):
		p := ctime().FindStringSubmatch(s)
		date, clock, second, rest, layout = p[1]+" "+p[5], p[2], p[3], p[4], "Jan 2 2006"
	default:
		return m, fmt.Errorf("%q is no time that can be read; %s", text, examples)
	}
	if fraction != "" && second == "" {
		return m, fmt.Errorf("%q is no time that can be read; %s", text, examples)
	}
	place, name, assumed := zone, zone.String(), true
	if rest != "" {
		if place, err = parseZone(rest); err != nil {
			return m, fmt.Errorf("%q: %w", text, err)
		}
		name, assumed = place.String(), false
	}
	width := time.Minute
	if second != "" {
		width = time.Second
	} else {
		second = ":00"
	}
	leap := second == ":60" // of a leap second, or a clock that thinks so
	if leap {
		second = ":59"
	}
	wall, err := time.Parse(layout+" 15:04:05", date+" "+clock+second)
	if err != nil {
		return m, fmt.Errorf("%q is no time: there is no such day or hour", text)
	}
	if wall.Year() < 1971 || wall.Year() > 2261 {
		return m, fmt.Errorf("%q is no time of which there are records", text)
	}
	at, err := in(wall, place)
	if err != nil {
		return m, fmt.Errorf("%q: %w", text, err)
	}
	if leap {
		at = at.Add(time.Second)
	}
	from := at.UnixNano()
	if strings.Trim(fraction, "0") != "" { // many write .000 behind a time of whole seconds
		n, _ := strconv.ParseInt(fraction, 10, 64)
		width = time.Duration(math.Pow10(9 - len(fraction)))
		from += n * int64(width)
	}
	return Moment{From: from, To: from + int64(width) - 1, Zone: name, Assumed: assumed}, nil
}

// unix reads seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by their size.
func unix(text, whole, fraction string) (m Moment, err error) {
	n, err := strconv.ParseInt(whole, 10, 64)
	unit := int64(1)
	switch {
	case err != nil:
	case len(whole) <= 11:
		unit = 1e9
	case len(whole) <= 14:
		unit = 1e6
	case len(whole) <= 17:
		unit = 1e3
	}
	if err != nil || n > math.MaxInt64/unit-1 || fraction != "" && unit != 1e9 {
		return m, fmt.Errorf("%q is no time that can be read; %s", text, examples)
	}
	from, width := n*unit, unit
	if fraction != "" {
		f, _ := strconv.ParseInt(fraction, 10, 64)
		width = int64(math.Pow10(9 - len(fraction)))
		from += f * width
	}
	if from%1e9 == 0 && from < math.MaxInt64-1e9 { // as where a program has multiplied seconds
		width = 1e9
	}
	return Moment{From: from, To: from + width - 1, Zone: "UTC"}, nil
}

// parseZone reads a zone: an offset, an abbreviation that means one thing, or a name of the zone database.
func parseZone(s string) (*time.Location, error) {
	s = strings.TrimSpace(s)
	if c := comment().ReplaceAllString(s, ""); c != "" { // "+0100 (CET)"
		s = c
	}
	if p := offset().FindStringSubmatch(strings.ToUpper(s)); p != nil {
		h, _ := strconv.Atoi(p[2])
		m, _ := strconv.Atoi(p[3])
		seconds := h*3600 + m*60
		if h > 14 || m > 59 {
			return nil, fmt.Errorf("there is no zone %s", s)
		}
		if p[1] == "-" {
			seconds = -seconds
		}
		if seconds == 0 {
			return time.UTC, nil
		}
		return time.FixedZone(fmt.Sprintf("%s%02d:%02d", p[1], h, m), seconds), nil
	}
	upper := strings.ToUpper(s)
	if half, _, _ := strings.Cut(upper, " "); half == "AM" || half == "PM" {
		return nil, errors.New("write the hour from 00 to 23, without AM and PM")
	}
	if hours, ok := zones[upper]; ok {
		if hours == 0 && seasons[upper] == "" {
			return time.UTC, nil
		}
		return time.FixedZone(upper, hours*3600), nil
	}
	if which, ok := unclear[upper]; ok {
		return nil, fmt.Errorf("%s may be %s; write the offset instead", upper, which)
	}
	if strings.Contains(s, "/") && !strings.Contains(s, "..") {
		if l, err := time.LoadLocation(s); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("the zone %q is not known; write an offset such as +01:00, UTC, or a name such as Europe/Berlin", s)
}

// LoadZone reads the name of a zone as ParseTime does, for times that have none.
func LoadZone(s string) (*time.Location, error) {
	if strings.EqualFold(s, "local") {
		return Local(), nil
	}
	return parseZone(s)
}

// Local is the machine's zone, with a name for people where it is UTC.
func Local() *time.Location { return local(time.Now()) }

// local looks at whole years: London shows UTC in winter alone.
func local(now time.Time) *time.Location {
	for months := range 36 {
		if _, off := now.AddDate(0, -months, 0).In(time.Local).Zone(); off != 0 {
			return time.Local
		}
	}
	return time.UTC
}

// seasons are places with summer time whose abbreviations many write the whole year.
var seasons = map[string]string{
	"CET": "Europe/Berlin", "CEST": "Europe/Berlin", "MEZ": "Europe/Berlin", "MESZ": "Europe/Berlin", "WET": "Europe/Lisbon", "WEST": "Europe/Lisbon", "EET": "Europe/Helsinki", "EEST": "Europe/Helsinki",
	"EST": "America/New_York", "EDT": "America/New_York", "CDT": "America/Chicago", "MDT": "America/Denver",
	"PST": "America/Los_Angeles", "PDT": "America/Los_Angeles", "AKST": "America/Anchorage", "AKDT": "America/Anchorage",
	"AEST": "Australia/Sydney", "AEDT": "Australia/Sydney", "NZST": "Pacific/Auckland", "NZDT": "Pacific/Auckland",
}

// in returns the instant that a clock on the wall of a place showed. Where clocks are set forward there is none, where
// they are set back there are two, and an abbreviation out of its season may be meant as it stands or not.
func in(wall time.Time, place *time.Location) (at time.Time, err error) {
	// What the place was ahead of UTC a day before and a day after: one of the two, unless that changed in between.
	found := 0
	for i, day := range [...]time.Duration{-24 * time.Hour, 24 * time.Hour} {
		_, ahead := wall.Add(day).In(place).Zone()
		t := wall.Add(-time.Duration(ahead) * time.Second).In(place)
		if t.Format(time.DateTime) == wall.Format(time.DateTime) && (found == 0 || !t.Equal(at)) {
			at = t
			found++
		}
		if i == 1 && found == 0 {
			return t, fmt.Errorf("clocks in %s never showed this: they were set forward; write the time with an offset, such as +01:00", place)
		}
	}
	if found == 2 {
		return at, fmt.Errorf("clocks in %s showed this twice: they were set back; write the time with an offset, such as +01:00", place)
	}
	where, ok := seasons[place.String()]
	if !ok {
		return at, nil
	}
	if l, err := time.LoadLocation(where); err == nil {
		_, means := at.Zone()
		if name, shown := at.In(l).Zone(); shown != means {
			return at, fmt.Errorf("%s then: clocks in %s showed %s, and many write %s the whole year; write the offset that is meant, %s or %s",
				place, where, name, place, at.Format("-07:00"), at.In(l).Format("-07:00"))
		}
	}
	return at, nil
}

// stamp writes a time as records have it.
func stamp(ns int64) string {
	return time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// short writes a time for people, in UTC, without digits that say nothing.
func short(ns int64) string {
	t := time.Unix(0, ns).UTC()
	if ns%1e9 == 0 {
		return t.Format("2006-01-02 15:04:05 UTC")
	}
	return t.Format("2006-01-02 15:04:05.000") + " UTC"
}
