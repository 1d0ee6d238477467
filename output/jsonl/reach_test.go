package jsonl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReach: files of so many minutes tell how long all of them will hold.
func TestReach(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	file := func(name string, from, to time.Duration, size int) {
		t.Helper()
		line := fmt.Sprintf(`{"v":1,"time":%q}`+"\n", time.Now().Add(-from).UTC().Format(time.RFC3339Nano))
		if err := os.WriteFile(path+name, []byte(strings.Repeat(line, size/len(line)+1)), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-to)
		if err := os.Chtimes(path+name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	tells := func(c Config, tell, reach string) {
		t.Helper()
		_, err := c.Reach(ctx)
		if got := c.Tell(); got != tell || (err == nil) != (reach == "") || err != nil && err.Error() != path+": "+reach {
			t.Errorf("%+v\ntells %q, want %q\nreach %v, want %q", c, got, tell, err, reach)
		}
	}
	c := Config{Path: path, MaxSize: 1 << 20, Keep: 9}
	tells(c, "", "") // not there yet
	file("", 31*time.Minute, time.Minute, 1<<18)
	tells(c, "reaches back 31 minutes, and holds 19 hours at the rate until now", "")
	tells(Config{Path: path}, "", "")
	file(".1", 61*time.Minute, 31*time.Minute, 1<<20)
	file(".2", 95*time.Minute, 61*time.Minute, 1<<20)
	tells(c, "reaches back 95 minutes, and holds 5 hours at the rate until now", "")
	c.MaxAge = 4 * time.Hour
	tells(c, "reaches back 95 minutes, and holds 4 hours at the rate until now", "")
	c.MaxAge = 180 * day
	tells(c, "reaches back 95 minutes, and holds 5 hours at the rate until now",
		"max_size and keep hold 5 hours at the rate until now, and max_age is 180 days; raise keep or max_size, or set compress: zstd")
}
