package ipfix

// Counters calls emit for each of the Exporter's own counters. Any goroutine may call it.
func (e *Exporter) Counters(emit func(name, label string, n uint64)) {
	s := e.Stats()
	emit("bytes", "", s.Bytes)
	emit("messages", "", s.Messages)
	emit("sessions", "", s.Sessions)
	emit("refusals", "", s.Refused)
	emit("address_changes", "", s.Moves)
	emit("resent_records", "", s.Resent)
	emit("skipped_records", "", s.Skipped)
}
