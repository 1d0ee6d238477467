// Package subscriber says who had an address at a time, and writes it into records as they pass.
//
//	sources := []*subscriber.Source{subscriber.New(cfg, log)}  // one for each entry of enrich.subscribers
//	stage := subscriber.NewStage(sources)                      // of the pipeline
//	sources[0].Start(stateDirectory)
//
// A Source has a goroutine of its own, which reads a file whenever it has changed (watcher.go, with the parsers in files.go),
// or takes RADIUS accounting (radius.go), whose sessions another goroutine keeps for the next process (sessions.go). Of what it
// learns it makes a table (table.go), and shows it to the stage by an atomic pointer: a table is whole, and is not changed once
// it is shown. So nothing that a disk or a sender of packets does touches the reader.
//
// # Time
//
// Leases move. A table keeps intervals, who had an address from when until when, and the stage asks for the time at which the
// flow began, not for now: records are made at a flow's end, and may be late. Where it is not certain who had an address, for
// instance between two readings of a file between which it changed hands, nobody is named. A record without a name is
// better than one with the wrong one.
package subscriber
