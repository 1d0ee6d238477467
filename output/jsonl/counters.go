package jsonl

// Counters calls emit for each of the File's own counters. Any goroutine may call it.
func (f *File) Counters(emit func(name, label string, n uint64)) {
	s := &f.Stats
	emit("bytes", "", s.Bytes.Load())
	emit("torn_bytes", "", s.TornBytes.Load())
	emit("rotations", "success", s.Rotations.Load())
	emit("rotations", "failure", s.RotationErrors.Load())
	emit("compressions", "success", s.Compressions.Load())
	emit("compressions", "failure", s.CompressErrors.Load())
	emit("removed_files", "", s.RemovedFiles.Load())
	emit("removed_records", "", s.RemovedRecords.Load())
	if f.house == nil {
		return
	}
	if at := f.house.keptSince.Load(); at != 0 {
		emit("kept_since", "", uint64(at))
	}
}
