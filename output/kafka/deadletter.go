package kafka

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// deadLetters is the file of records that no broker will ever take. It is opened for each burst and closed after it, so
// that it may be rotated at any time.
type deadLetters struct {
	path string // "" keeps none
	max  int64  // bytes; what would pass it is not kept
}

// deadLetter is one line of the file.
type deadLetter struct {
	Time  time.Time       `json:"time"`
	Topic string          `json:"topic"`
	Error string          `json:"error"`
	Key   string          `json:"key,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
	Bytes []byte          `json:"value_base64,omitempty"` // instead of Value, if that is no JSON
}

// append appends letters and returns how many it has written.
func (d *deadLetters) append(letters []deadLetter) (n int, err error) {
	if d.path == "" || len(letters) == 0 {
		return 0, nil
	}
	f, err := os.OpenFile(d.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return 0, fmt.Errorf("open dead-letter file: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close dead-letter file: %w", cerr)
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("stat dead-letter file: %w", err)
	}
	room := d.max - info.Size()
	var buf []byte
	for i := range letters {
		line, merr := json.Marshal(&letters[i])
		if merr != nil {
			return 0, fmt.Errorf("encode dead letter: %w", merr)
		}
		if int64(len(buf)+len(line)+1) > room {
			err = fmt.Errorf("dead-letter file %s has reached %d bytes", d.path, d.max)
			break
		}
		buf = append(append(buf, line...), '\n')
		n++
	}
	if _, werr := f.Write(buf); werr != nil {
		_ = f.Truncate(info.Size()) // no half lines, for what comes later to follow
		return 0, fmt.Errorf("write dead-letter file: %w", werr)
	}
	return n, err
}
