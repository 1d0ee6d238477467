// Package format turns records into the text that outputs carry. A format is an Encoder, made by New; kinds is the table
// of all there are. docs/formats.md shows one flow in each of them, docs/json.md describes the flat one, and the tests
// hold the encoders to both.
//
// What the formats share stands once: keys.go names what a record tells, and with it what fields.drop leaves out;
// parts.go has the values and the pieces of text that recur; append.go the numbers, times and strings.
package format

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ctlogd/ctlogd/flow"
)

// Encoder writes records in one format. It may keep caches, so each output's worker has its own; it keeps no
// reference to a record.
type Encoder interface {
	// Append appends r to dst and returns the extended slice. What it appends holds no newline and has none at its
	// end: framing belongs to the output. It cannot fail, whatever bytes the kernel sent.
	Append(dst []byte, r *flow.Record) []byte
}

// Fields says which keys the records have. Keys are called by their names in the flat format, in every format.
type Fields struct {
	Drop []string `yaml:"drop"` // keys to leave out
	Add  []string `yaml:"add"`  // keys that the format leaves out unless they are asked for
}

// Options are what an encoder needs to know beyond the records.
type Options struct {
	Host     string // what the box is called; "" leaves it out
	Observer string // whose flow ids these are, see NewObserverKey; "" leaves them out
	Version  string // ctlogd's, for the formats that name their source
	Fields
}

// kind is a format.
type kind struct {
	name    string
	new     func(parts) Encoder
	carries set    // the keys that it has a place for
	asked   set    // those of them that have to be asked for
	begins  string // how every line begins
	json    bool
}

// kinds are the formats. The first is the default.
var kinds = []kind{
	{"flat", newFlat, allOfThem, community, "{", true},
	{"ecs", newECS, allOfThem, 0, "{", true},
	{"ocsf", newOCSF, allOfThem, 0, "{", true},
	{"cim", newCIM, allOfThem, community, "{", true},
	{"ulogd2", newUlogd2, ulogd2Keys, 0, "{", true},
	{"cef", newCEF, allOfThem, community, "CEF:", false},
}

// Names are the formats that New knows, the default first. JSONNames are those of them whose records are JSON objects.
var Names, JSONNames = func() (all, json []string) {
	for _, k := range kinds {
		all = append(all, k.name)
		if k.json {
			json = append(json, k.name)
		}
	}
	return all, json
}()

// lookup returns the format called name, "" meaning the default.
func lookup(name string) (*kind, error) {
	if name == "" {
		return &kinds[0], nil
	}
	for i := range kinds {
		if kinds[i].name == name {
			return &kinds[i], nil
		}
	}
	return nil, fmt.Errorf("unknown format %q; allowed are: %s", name, strings.Join(Names, ", "))
}

// New returns a new encoder of the format called name, "" meaning the default.
func New(name string, o Options) (Encoder, error) {
	k, err := lookup(name)
	if err != nil {
		return nil, err
	}
	keep := k.carries &^ k.asked
	Validate(name, o.Fields, func(field, msg string) { err = errors.Join(err, fmt.Errorf("%s: %s", field, msg)) })
	if err != nil {
		return nil, err
	}
	for _, name := range o.Add {
		key, _ := allOfThem.lookup(name)
		keep |= 1 << key
	}
	for _, name := range o.Drop {
		key, _ := allOfThem.lookup(name)
		keep &^= 1 << key
	}
	if keep&hashed&k.carries != hashed&k.carries {
		keep &^= community
	}
	return k.new(newParts(keep, o)), nil
}

// Validate reports what is wrong with the format called name and with its fields, each with the key it stands under.
func Validate(name string, f Fields, report func(field, msg string)) {
	k, err := lookup(name)
	if err != nil {
		report("format", err.Error())
		k = &kinds[0]
	}
	dropped := check(f.Drop, k.carries, func(msg string) { report("fields.drop", "cannot drop "+msg) })
	if ends := setOf(kSrcIP, kDstIP); k.name == "ocsf" && dropped&ends == ends {
		report("fields.drop", "OCSF wants an address in each record; leave src_ip or dst_ip")
	}
	if len(f.Add) > 0 && k.carries&community == 0 {
		report("fields.add", fmt.Sprintf("format %s has no place for %s; leave out fields.add, or use another format", k.name,
			strings.Join(community.names(), " and ")))
		return
	}
	added := check(f.Add, community, func(msg string) { report("fields.add", "cannot add "+msg) })
	if both := added & dropped; both != 0 {
		report("fields.add", both.names()[0]+" stands in fields.drop as well; write it in one of the two")
	} else if gone := dropped & hashed; added != 0 && gone != 0 {
		report("fields.add", fmt.Sprintf("%s is a hash of %s, which fields.drop leaves out, and would give it away; "+
			"leave out one of the two", added.names()[0], gone.names()[0]))
	}
}

// check returns the keys called names, and reports the first that is not allowed.
func check(names []string, allowed set, report func(msg string)) (s set) {
	for _, name := range names {
		k, ok := allowed.lookup(name)
		if !ok {
			report(fmt.Sprintf("%q; allowed are: %s", name, strings.Join(allowed.names(), ", ")))
			return s
		}
		s |= 1 << k
	}
	return s
}

// Lacks returns the keys that the format called name has no place for, by their names.
func Lacks(name string) []string {
	k, err := lookup(name)
	if err != nil {
		return nil
	}
	return (allOfThem &^ k.carries).names()
}

// Asked is what a configuration has gathered at a price, so that it is told where a format leaves it out.
type Asked struct{ Expectations, Labels, FlowID bool }

// Warnings reports what is asked for and has no place in the format called name. The format and its fields are valid.
func Warnings(name string, f Fields, a Asked, report func(field, msg string)) {
	k, err := lookup(name)
	if err != nil {
		return
	}
	if a.Expectations && !k.carries.has(kMaskSrcIP) {
		report("format", fmt.Sprintf("%s knows no expectations, which input.conntrack.expectations has made records of: they "+
			"have a key event, which other records lack; drop them with a filter, or use another format", k.name))
	}
	if a.Labels && !k.carries.has(kLabels) {
		report("format", fmt.Sprintf("%s has no place for labels, which input.conntrack.labels gathers; leave labels out, or use "+
			"another format", k.name))
	}
	if a.FlowID && !k.carries.has(kFlowID) {
		report("format", fmt.Sprintf("%s has no place for flow_id, so that records that were delivered twice are not told from "+
			"flows; use another format where that matters", k.name))
	}
	var dropped set
	for _, name := range f.Drop {
		if key, ok := allOfThem.lookup(name); ok {
			dropped |= 1 << key
		}
	}
	if k.name == "ocsf" {
		for end, nat := range map[key]key{kSrcIP: kNATSrcIP, kDstIP: kNATDstIP} {
			if dropped.has(end) && !dropped.has(nat) {
				report("fields.drop", fmt.Sprintf("without %s OCSF has no place for %s either, as it is a part of the endpoint; drop "+
					"both, or keep both", keyNames[end], keyNames[nat]))
			}
		}
	}
}

// Begins returns how each record of the format called name begins: with another beginning, a line is of another format.
func Begins(name string) string {
	k, err := lookup(name)
	if err != nil {
		return ""
	}
	return k.begins
}

// IsJSON reports whether the records of the format called name are JSON objects.
func IsJSON(name string) bool { return name == "" || slices.Contains(JSONNames, name) }
