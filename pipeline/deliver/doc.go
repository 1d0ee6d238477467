// Package deliver brings the records of one output from the reader to their destination.
//
//	q := deliver.New(deliver.Config{Name: name, Build: build, Spool: open})
//	q.Start()
//	q.Offer(batch)                // the reader's goroutine: never waits
//	deliver.Settle(ctx, queues)   // the end comes: returns when waiting for the outputs is of no more use
//	deliver.Retire(ctx, queues)   // nothing more comes: delivers the rest, or puts on record that it is lost
//
// A queue is made of parts. Each has its own lock, which is never held while a disk or a network is waited for:
//
//		         Offer      +--------+  hand   +--------+  Write   +--------+ acknowledged
//		reader ------------>| buffer |-------->| worker |--------->| flight |-------------> done
//		                    +--------+         +--------+          +--------+
//		                      |    |               ^   |
//		             no room  |    | behind        |   | refused, given up
//		                      v    v               |   v
//		               +--------+ +---------+      |  +--------+
//		               | ledger | | spooler |------+  | ledger |--> gap records, through the worker
//		               +--------+ +---------+         +--------+
//
//	  - buffer: the records that wait in memory, those in the worker's hand included. It counts records that the output
//	    wants, and nothing else.
//	  - worker: one goroutine. It alone builds, calls and closes the output. It retries with backoff and never touches a
//	    disk by itself: for what the spool has it waits until that disk hangs, and then goes on without.
//	  - spooler: one goroutine, if there is a spool. It alone opens, writes, reads and closes it.
//	  - flight: what an Acknowledger has taken and the destination has not acknowledged.
//	  - ledger: every loss, until a gap record of it has arrived or is on the disk.
//	  - health: how the output has answered. A watch notices a call that does not return, and that counts as a failure.
//	  - ending: the end, announced and then final.
//
// A record that was offered is, at any moment, in the buffer, in the spool, in flight, delivered, or counted in the ledger.
// It is put into the next place before it is taken out of the last one. What moves it is the only one that may. So losses
// are exact: what an output has not taken when its queue ends is counted where it is. A call that hangs is left with what
// it has, that is counted as lost, or spooled, and may arrive all the same.
package deliver
