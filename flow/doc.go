// Package flow is ctlogd's domain: the record of one connection tracking event, the tuples and counters it is made
// of, and the batch in which records travel. It imports the standard library alone, and every other package may
// import it.
//
// A Record is a flat value of fixed size with a single pointer, to the Extra that few records need. It is decoded in
// place into a Batch, amended in place by the stages of the pipeline on the reader's goroutine, and read-only from the
// moment at which the batch is offered to the outputs.
package flow
