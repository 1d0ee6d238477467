// Package format turns records into the text that outputs carry. A format is an Encoder; "flat", one JSON object for
// each record, is the one there is. docs/json.md describes it for those who read it, docs/flow.schema.json is its
// JSON Schema, and the tests hold the encoder to both.
package format

import (
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

// Names are the formats that New knows.
var Names = []string{"flat"}

// New returns a new encoder of the format called name, "" meaning the default.
func New(name string, o FlatOptions) (Encoder, error) {
	if name != "" && !slices.Contains(Names, name) {
		return nil, fmt.Errorf("unknown format %q; allowed are: %s", name, strings.Join(Names, ", "))
	}
	return NewFlat(o)
}
