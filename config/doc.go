// Package config reads a configuration from YAML: strictly, and with all mistakes at once.
//
//	d := config.Decode(text, &cfg, example)  // the walk: unknown keys, wrong kinds of values, YAML itself
//	cfg.Validate(d.Report())                 // what the blocks say of their values
//	err := d.Err("ctlogd.yaml")              // *config.Error: ctlogd.yaml:42: outputs.jsonl[1].path: missing; ...
//
// A block is a struct with yaml tags. It owns its defaults (Defaulter) and its validation, and knows nothing of files
// and lines: it reports a key, and the Document knows the line.
//
// The walk (walk.go) is our own because no library gives all mistakes of a file at once, each with its line and its
// key, in words that do not speak of Go. It knows what configurations are made of: structs (also inline), pointers,
// slices, scalars, and types that read themselves from text. What the document does not mention keeps the value it had.
// syntax.go puts what the yaml package says into words for people; keys.go knows keys and guesses which one was meant.
package config
