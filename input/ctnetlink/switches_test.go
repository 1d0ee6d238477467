package ctnetlink

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// The switch is set at some seconds, and looked at each second. Expected are the gaps, from and to, in seconds.
func TestEventsSwitch(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  map[int]string
		end  int
		gaps [][2]int
		logs int
	}{
		{"on", map[int]string{0: "1"}, 200, nil, 0},
		{"automatic", map[int]string{0: "2"}, 200, nil, 0},
		{"not there", map[int]string{0: ""}, 200, nil, 0},
		{"off for a while", map[int]string{0: "1", 10: "0", 20: "1"}, 30, [][2]int{{9, 10}, {10, 20}}, 2},
		{"off for long", map[int]string{0: "1", 10: "0", 135: "2"}, 300,
			[][2]int{{9, 10}, {10, 70}, {70, 130}, {130, 135}}, 2},
		{"off at the end", map[int]string{0: "1", 10: "0"}, 30, [][2]int{{9, 10}, {10, 30}}, 1},
		{"off from the start", map[int]string{0: "0"}, 3, [][2]int{{0, 1}, {1, 3}}, 1},
		{"off just before the end", map[int]string{0: "1", 30: "0"}, 30, [][2]int{{29, 30}}, 1},
		{"off, on, off", map[int]string{0: "1", 5: "0", 7: "1", 9: "0", 11: "1"}, 20,
			[][2]int{{4, 5}, {5, 7}, {8, 9}, {9, 11}}, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			core, logs := observer.New(zap.InfoLevel)
			base := time.Now()
			s := newSwitches(zap.New(core), base, readSwitch)
			value := tt.set[0]
			s.read = func(i Switch) string {
				if i == SwitchEvents {
					return value
				}
				return "1"
			}
			s.off = [numSwitches]bool{}
			var gaps [][2]int
			seconds := func(at time.Time) int { return int(at.Sub(base) / time.Second) }
			for i := 0; i <= tt.end; i++ {
				if v, ok := tt.set[i]; ok {
					value = v
				}
				s.look(base.Add(time.Duration(i)*time.Second), i == tt.end, func(from, to time.Time) {
					gaps = append(gaps, [2]int{seconds(from), seconds(to)})
				})
			}
			if diff := cmp.Diff(tt.gaps, gaps); diff != "" {
				t.Errorf("gaps (-want +got):\n%s", diff)
			}
			if logs.Len() != tt.logs {
				t.Errorf("%d lines in the log, want %d: %v", logs.Len(), tt.logs, logs.All())
			}
		})
	}
}
