package filter

import (
	"fmt"

	"gopkg.in/yaml.v3"
)

// List is a list in a configuration for which a single value may stand: `proto: tcp` is `proto: [tcp]`. A list that is
// written but empty is not nil, so that it can be told from one that is not there.
type List[T any] []T

// UnmarshalYAML reads a sequence or a single value. It has the form that keeps the decoder's KnownFields.
func (l *List[T]) UnmarshalYAML(unmarshal func(any) error) error {
	var elements []yaml.Node
	if unmarshal(&elements) != nil { // no sequence
		*l = make(List[T], 1)
		return unmarshal(&(*l)[0])
	}
	for _, e := range elements {
		if e.ShortTag() == "!!null" { // which the decoder would leave out
			return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: element of a list without a value", e.Line)}}
		}
	}
	return unmarshal((*[]T)(l))
}
