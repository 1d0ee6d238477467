// Package input turns a source of events into batches of flow records.
//
// A Reader goes in rounds: it has its Source fill the batch, lets it do a little of its other work, hands the batch over
// when it is full or old, and naps or waits. It knows when a batch is due, how long to nap, what the machine's clock is
// worth, and how to end without losing what waits. It knows nothing of what an event looks like: that is the Source's.
// The Source of the kernel's connection tracking events is in package ctnetlink.
//
// Nothing that may wait for a disk, a terminal or a network is called on the reader's goroutine. TestNothingWaits keeps a
// list of what this package and ctnetlink call.
package input
