package live

import (
	"os"
	"testing"
	"time"
	"math"
	"fmt"

	"github.com/ctlogd/ctlogd/flow"
)

func TestShotServe(t *testing.T) {
	if os.Getenv("SHOT") == "" {
		t.Skip()
	}
	f := newFixture(t)
	f.talkers.look(time.Now())
	url := f.serve(t)
	for i := range 400 {
		f.table = append(f.table, ended(fmt.Sprintf("10.0.0.%d", i%250), fmt.Sprintf("203.0.113.%d", i%7), "198.51.100.7", 443, uint16(1024+i*7), 0))
	}
	time.Sleep(200*time.Millisecond)
	for i := range 3000 {
		f.end(ended(fmt.Sprintf("10.0.0.%d", i%250), fmt.Sprintf("203.0.113.%d", i*i%11), fmt.Sprintf("198.51.100.%d", i%99), []uint16{443, 80, 53, 22, 8443}[i%37%5], uint16(1024+i), uint64(i*1000)))
	}
	// a past
	s := f.snapshot
	now := time.Now()
	for i := range 140 {
		s.Time = now.Add(time.Duration(i-140) * pointTime)
		s.Reader.Events = map[string]uint64{"destroy": uint64(40000*i) + uint64(15000*math.Sin(float64(i)/9))}
		s.Outputs[0].Written = uint64(40000*i)
		s.Outputs[1].OldestAge = float64(i)/2
		s.Outputs[1].Used = i*400
		s.Kernel.Entries = uint32(30000+ i*900)
		f.history.add(s)
	}
	_ = flow.TCP
	if os.Getenv("SHOT") == "ok" {
		f.snapshot.Outputs = f.snapshot.Outputs[:1]
	} else {
	f.snapshot.Judge() }
	os.WriteFile("/root/scratch-live/url", []byte(url), 0o644)
	time.Sleep(200 * time.Second)
}
