// Package jsonl writes records as lines of JSON into a file, a FIFO, a device or standard output.
//
// Every line of the file is whole, whatever happens: a crash, a full disk, a second ctlogd. What a crash has left of a
// line is cut off when the file is opened, what a failed write has left of one before anything else is written, and an
// exclusive lock (flock(2)) keeps other writers away. FIFOs, devices and standard output cannot be cut: there a line
// that was begun is finished first, and comes once more when its record is delivered again.
//
// Nothing is synced to disk: what the kernel has taken counts as delivered, so that only a crash of the machine, not
// one of ctlogd, can lose it.
package jsonl
