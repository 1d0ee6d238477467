package pipeline

// Room reports whether every queue is less than half full. Whoever makes many records, and can make them later, asks
// first. It may be called from any goroutine.
func (p *Pipeline) Room() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.queues {
		q.mu.Lock()
		full := q.room > q.max/2
		q.mu.Unlock()
		if full {
			return false
		}
	}
	return true
}
