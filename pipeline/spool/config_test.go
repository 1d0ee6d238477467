package spool

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/unit"
)

func TestConfig(t *testing.T) {
	tests := []struct {
		name, yaml string
		want       Config // with defaults
		errs       []string
	}{
		{
			name: "defaults", yaml: "path: /var/lib/ctlogd/spool/kafka",
			want: Config{"/var/lib/ctlogd/spool/kafka", 1 << 30, "drop_newest", "interval"},
		},
		{
			name: "all keys", yaml: "{path: /s, max_size: 4MiB, when_full: drop_oldest, fsync: always}",
			want: Config{"/s", 4 << 20, "drop_oldest", "always"},
		},
		{
			name: "all wrong", yaml: "{max_size: 4095KiB, when_full: block, fsync: yes please}",
			want: Config{"", 4095 << 10, "block", "yes please"},
			errs: []string{
				"path: missing path; write a directory of the spool's own, such as /var/lib/ctlogd/spool/NAME",
				"max_size: 4095KiB is too small; write 4MiB or more",
				`when_full: unknown policy "block"; allowed are: drop_newest, drop_oldest`,
				`fsync: unknown policy "yes please"; allowed are: interval, always, never`,
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c Config
			if err := yaml.Unmarshal([]byte(tt.yaml), &c); err != nil {
				t.Fatal(err)
			}
			var errs []string
			c.Validate(func(field, msg string) { errs = append(errs, field+": "+msg) })
			if diff := cmp.Diff(tt.errs, errs); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			c.Defaults()
			if diff := cmp.Diff(tt.want, c); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSegmentSize(t *testing.T) {
	for maxSize, want := range map[unit.Size]int64{4 << 20: 1 << 20, 160 << 20: 10 << 20, 1 << 40: 64 << 20} {
		c := Config{MaxSize: maxSize}
		if got := c.segmentSize(); got != want {
			t.Errorf("max_size %s: segments of %d bytes, want %d", maxSize, got, want)
		}
	}
}
