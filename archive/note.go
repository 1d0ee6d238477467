package archive

// Checkpoint is a reading of the table of live flows, as the catalog has it: the flows that were older than MinAge then
// have an open record. If it is whole, whoever was alive has a record by its end.
type Checkpoint struct {
	Began  Time     `json:"began"`
	Ended  Time     `json:"ended"`
	MinAge Duration `json:"min_age"`
	Whole  bool     `json:"whole"`
}
