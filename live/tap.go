package live

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/filter"
)

const (
	// tapBatches is how many batches wait for a tap: up to 3 MiB, or what comes in tapPause at 600,000 records a second.
	tapBatches = 64

	// tapPause is what a tap waits between two looks. While it waits, a batch that comes wakes nobody.
	tapPause = 25 * time.Millisecond

	// tapWrite is about how much one write carries.
	tapWrite = 128 << 10

	// binaryRecords is the form of records that our own client asks for: frames, each a length in four bytes,
	// little-endian, and records in the form of flow.AppendBinary. It costs the daemon a quarter of what JSON does.
	binaryRecords = "application/vnd.ctlogd.records"
	jsonRecords   = "application/x-ndjson"

	frameHeader = 4
	maxFrame    = 4 << 20
)

// tap shows the records that match the request's words as they come, JSON lines unless asked for the binary form, until
// the client goes. A gap record of the output "tap" says how many the client was too slow for.
func (s *Server) tap(w http.ResponseWriter, r *http.Request) {
	accept, err := filter.ParseWords(r.URL.Query()["word"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if s.taps.Add(1) > maxTaps {
		s.taps.Add(-1)
		http.Error(w, fmt.Sprintf("%d taps are open, which is the most; end one", maxTaps), http.StatusServiceUnavailable)
		return
	}
	defer s.taps.Add(-1)
	f := frame{binary: r.Header.Get("Accept") == binaryRecords}
	w.Header().Set("Content-Type", binaryRecords)
	if !f.binary {
		w.Header().Set("Content-Type", jsonRecords)
		enc, err := s.o.Encoder()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		f.append = enc.Append
	}
	out := http.NewResponseController(w)
	t := s.o.Pipeline.Tap(tapBatches)
	defer s.o.Pipeline.Untap(t)
	if out.Flush() != nil { // the client may begin: it is tapped
		return
	}
	for {
		f.begin()
		b, missed, ok := t.More()
		if !ok && missed == 0 {
			if b, missed, ok = t.Next(r.Context().Done()); !ok {
				return
			}
		}
		for {
			if missed > 0 {
				f.record(missedRecord(missed))
			}
			if !ok {
				break
			}
			for i := range b.Records {
				if rec := &b.Records[i]; accept == nil || accept(rec) {
					f.record(rec)
				}
			}
			b.Done()
			if len(f.buf) >= tapWrite {
				break
			}
			b, missed, ok = t.More()
		}
		if !f.empty() {
			if _, err := w.Write(f.end()); err != nil || out.Flush() != nil {
				return
			}
		}
		if len(f.buf) < tapWrite {
			time.Sleep(tapPause)
		}
	}
}

// missedRecord says in the stream itself what a tap did not get.
func missedRecord(n uint64) *flow.Record {
	return &flow.Record{Event: flow.EventGap, Received: time.Now().UnixNano(),
		Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseQueueFull, Lost: n, LostKnown: true, Output: TapName}}}
}

// frame collects the records of one write.
type frame struct {
	binary bool
	append func(dst []byte, r *flow.Record) []byte // of a line of text
	buf    []byte
}

func (f *frame) begin() {
	f.buf = f.buf[:0]
	if f.binary {
		f.buf = append(f.buf, 0, 0, 0, 0)
	}
}

func (f *frame) empty() bool { return len(f.buf) == 0 || f.binary && len(f.buf) == frameHeader }

func (f *frame) record(r *flow.Record) {
	if f.binary {
		f.buf = flow.AppendBinary(f.buf, r)
	} else {
		f.buf = append(f.append(f.buf, r), '\n')
	}
}

func (f *frame) end() []byte {
	if f.binary {
		binary.LittleEndian.PutUint32(f.buf, uint32(len(f.buf)-frameHeader))
	}
	return f.buf
}

// errFrame says that what answers is no ctlogd of about this age.
var errFrame = errors.New("the daemon's records cannot be read; is it of another version?")

// unframe calls show for each record of a frame's payload. The record is show's until it returns.
func unframe(payload []byte, b *flow.Batch, show func(*flow.Record) (more bool)) (more bool, err error) {
	for len(payload) > 0 {
		b.Reset()
		if payload, err = b.DecodeBinary(payload); err != nil {
			return false, errFrame
		}
		if !show(&b.Records[0]) {
			return false, nil
		}
	}
	return true, nil
}
