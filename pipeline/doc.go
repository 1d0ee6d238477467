// Package pipeline takes a batch from the reader to the outputs: Ingest has the stages amend it in place, offers it to the
// queue of each output (package deliver), and shows it to those who tap (tap.go). All of that is on the reader's goroutine,
// and none of it waits.
//
// Stages of this package are Helpers, which remembers what the kernel leaves out of a flow's last record, and Select.
package pipeline
