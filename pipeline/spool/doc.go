// Package spool is an output's queue on disk: what its memory queue cannot hold waits here, in order, until the
// destination takes it, across restarts and kill -9.
//
//	s, err := spool.Open(cfg, output.Name(), log)
//	lost, err := s.Append(recs)  // one goroutine: the kernel has recs, or, on error, has none of them
//	n, err := s.Read(batch)      // another one: the next n records, gaps among them
//	err = s.Commit(n)            // they are delivered
//
// # What it holds to
//
//   - A record for which Append has returned without loss is read, in order, until it is committed. The end of the
//     process, at any moment, changes nothing about that; the end of the machine costs what was not yet forced to the
//     disk, which is nothing with fsync always, and the last second or so with interval.
//   - A restart reads a record again if and only if it was not committed. That is one batch as a rule, and what a
//     collector has not acknowledged. Commit is one write(2) of the state file, and is not put off.
//   - What is lost is read, in its place, as a gap record: dropped because the spool was full (spool_full), torn by a
//     crash or damaged on disk (crash). The count is exact, except for the damaged tail of the last segment if not even
//     the frame's header is whole, and for a damaged state file; there it is absent. A gap is read again until it is
//     committed, like a record.
//   - A gap record that is appended, whatever its cause, is kept beside the records, in the state file. It is not
//     dropped when the spool is full, and is accepted when the disk is full. Of more than 64 that wait, those closest
//     in time become one, their counts summed.
//   - Damaged records are never delivered: every frame has its checksum.
//   - The files have max_size bytes at most.
//
// Records are numbered as they are appended, and each frame and each segment says the number of its first record. So
// whatever is missing shows as a jump, and its size is known. The process that has the spool open locks the state file.
//
// # Where what is
//
//	open.go    open, lock, recover: segments and state become the index, a torn tail is cut
//	index.go   what the spool holds, in memory; its lock is never held while the disk works
//	append.go  frames, segments, what happens when it is full
//	read.go    frames to records, damage to gaps
//	commit.go  what is delivered, and so which segments go
//	sync.go    writing the state; fdatasync and what waits for it
//	frame.go, state.go, gap.go: the bytes of segments and of the state file; gaps in their places
//
// # Why not a library
//
// Measured with frames of 256 records of IPv6 with NAT, a helper and labels (37,888 bytes), 1,024,000 records, ext4, no
// fsync but diskqueue's once a second, CPU time from getrusage, median of three runs on two busy cores; every candidate
// encodes and decodes the same records:
//
//	                              append              read                garbage a record
//	                              CPU      wall       CPU      wall       append     read
//	this package                  207 ns   307 ns     191 ns   263 ns       0 B        0 B
//	nsqio/go-diskqueue v1.1.0     248 ns   357 ns     391 ns   490 ns       0 B      160 B
//	tidwall/wal v1.2.1            788 ns  1080 ns     193 ns   269 ns     868 B      160 B    and 150 ms for each
//	                                                                                          TruncateFront
//
// A short record of IPv4 costs 100 to 145 ns to append and 100 to 130 ns to read (go test -bench . ./pipeline/spool).
//
//   - diskqueue keeps the ends of its queue in a metadata file that it writes once a second or every so many messages.
//     A process that put 447 messages, was killed within its first second, was started again, put 444 more and was
//     killed again left none of the 891: a start without metadata writes over the file from its beginning. Reading is
//     delivering: a message counts as gone when the channel has handed it over, so what is being sent when the process
//     dies is lost. There is no checksum; a flipped bit is delivered. No bound, no lock, and a file with a bad length
//     is put aside with all that is in it, uncounted.
//   - wal lost none of 919 messages to kill -9. But it cannot open a log whose tail is torn ("log corrupt": 0 of 2,089
//     messages are left after 7 bytes were cut), has no checksum, keeps whole segments in memory, and to remove what
//     was delivered it writes the rest of the segment anew.
//   - VictoriaMetrics' lib/persistentqueue (read, not run: it does not come as a module of its own) buffers in the
//     process and writes its metadata once a second, cutting the file back to it at the next start: kill -9 costs up to
//     a second. A metadata file that it cannot read makes it empty the directory; an error of the disk is a panic.
//
// None has a record's count and time to tell what was lost, which is what this package is for. The kernel does tear
// writes: of 500 processes that were killed while they appended without pause, two left half a frame.
package spool
