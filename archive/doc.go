// Package archive keeps flow records for years, in files that answer as evidence. It knows nothing of the pipeline.
//
// A record goes through two files. Append writes it to a row log, which is what makes it safe. When a row log is full,
// or its day ends, Seal makes a segment of it: a Parquet file, sorted by the source as the far side saw it. A catalog has
// one line for each segment, chained by hashes. The catalog is the truth: a segment that no line names does not exist,
// and a row log that a line names is gone.
//
//	DIR/host=gw1/rows-00000000000000000042.rows                     row log that is written
//	DIR/host=gw1/checkpoint.note                                    signed note on the catalog and the row log
//	DIR/host=gw1/date=2026-11-27/catalog.jsonl                      lines of the chain
//	DIR/host=gw1/date=2026-11-27/20261127T120000Z-41.parquet        segment
//
// The order of work is: segment written, synced, read back, renamed, folder synced; catalog line appended and synced; row
// log removed. A crash between any two steps leaves either the row log or the segment for a reader, never both and never
// neither. Open finishes what a crash has left.
//
// A Writer is for one process and one goroutine; sealing, syncing and retention run on a goroutine of its own. A Reader
// needs no daemon, and never stops a Writer from removing files.
package archive
