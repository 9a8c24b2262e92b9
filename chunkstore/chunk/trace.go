package chunk

// Tracer is told all that a commit needs. Its methods are for one goroutine.
type Tracer interface {
	// Enter says whether what lies below a record of a map pack is to be told
	// of; false: it was, before.
	Enter(ref PackRef, record int) bool
	// Record tells of a record of a map pack.
	Record(ref PackRef, n int)
	// Chunks tells of the chunks first… of a data pack.
	Chunks(ref PackRef, first, count int)
}
