package deliver

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// LagBounds are the upper bounds of a Lag's buckets. A file gets a record within some 50 ms, the age of a batch; what
// comes out of a spool may be days old.
var LagBounds = [...]time.Duration{
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute,
	5 * time.Minute, 15 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour,
}

// Lag is how long after its event, the end of a flow say, a record was written. One goroutine, the worker, observes; any
// may read.
type Lag struct {
	counts [len(LagBounds) + 1]atomic.Uint64 // by bucket; the last one has no upper bound
	sum    atomic.Uint64                     // seconds, the bits of a float64
}

// Load returns how many records each bucket holds, and the sum of their lags in seconds.
func (l *Lag) Load() (counts [len(LagBounds) + 1]uint64, sum float64) {
	for i := range l.counts {
		counts[i] = l.counts[i].Load()
	}
	return counts, math.Float64frombits(l.sum.Load())
}

// observe counts recs, which were written now. Gaps do not count.
func (l *Lag) observe(recs []*flow.Record, now time.Time) {
	var counts [len(LagBounds) + 1]uint64
	written := now.UnixNano()
	var sum int64 // in 1024 ns, lest lags of months overflow it
	// Records of one write mostly share a bucket: the last one's is looked at first.
	bucket, above, upTo, n := 0, int64(-1), int64(LagBounds[0]), uint64(0)
	for _, r := range recs {
		if r.Event == flow.EventGap {
			continue
		}
		at, _ := r.Time()
		lag := max(written-at, 0) // the clock may have been set back
		if lag <= above || lag > upTo {
			counts[bucket] += n
			n = 0
			bucket, above, upTo = bucketOf(lag)
		}
		n++
		sum += lag >> 10
	}
	counts[bucket] += n
	for i, n := range counts {
		if n > 0 {
			l.counts[i].Add(n)
		}
	}
	l.sum.Store(math.Float64bits(math.Float64frombits(l.sum.Load()) + float64(sum)*1024/1e9))
}

// bucketOf returns the bucket of a lag, which holds those above the one bound and up to the other.
func bucketOf(lag int64) (bucket int, above, upTo int64) {
	above = -1
	for i, bound := range LagBounds {
		if lag <= int64(bound) {
			return i, above, int64(bound)
		}
		above = int64(bound)
	}
	return len(LagBounds), above, math.MaxInt64
}
