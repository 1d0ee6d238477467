package ownlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func TestLogger(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   []string // in the one line that comes through
	}{
		{Config{Level: "info", Format: "console"}, []string{"\tINFO\tinput\tat info\t", `{"a": "b", "n": 1}`}},
		{Config{Level: "info", Format: "json"}, []string{`"level":"info"`, `"logger":"input"`, `"msg":"at info"`,
			`"a":"b","n":1}`}},
	} {
		var out bytes.Buffer
		log, own := New(tt.config, &out)
		log = log.Named("input").With(zap.String("a", "b"))
		log.Debug("at debug")
		log.Info("at info", zap.Int("n", 1))
		own.Close()
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%v: %d lines, want 1: %q", tt.config, n, &out)
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: %q lacks %q", tt.config, &out, want)
			}
		}
	}
	for _, level := range levels {
		c := Config{Level: level, Format: "json"}
		c.Validate(func(field, msg string) { t.Errorf("%s: %s", field, msg) })
		log, own := New(c, io.Discard)
		if got := log.Level().String(); got != level {
			t.Errorf("the logger's level is %s, want %s", got, level)
		}
		own.Close()
	}
}

// Level and format change for the loggers that there are already.
func TestLogSet(t *testing.T) {
	var out bytes.Buffer
	log, own := New(Config{Level: "error", Format: "console"}, &out)
	log = log.Named("queue").With(zap.String("output", "x"))
	log.Warn("before")
	own.Set(Config{Level: "debug", Format: "json"})
	log.Debug("after")
	own.Close()
	if got := out.String(); !regexp.MustCompile(
		`^\{"level":"debug","ts":"[^"]+","logger":"queue","msg":"after","output":"x"\}\n$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
}

// asJournal makes a file that is the journal's stream for this process.
func asJournal(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	return f
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestLogToJournal(t *testing.T) {
	for format, want := range map[string]string{
		"console": `^<7>DEBUG\tx\ta\n<6>INFO\tx\ta\n<4>WARN\tx\ta\n<3>ERROR\tx\ta\t\{"error": "y"\}\n$`,
		"json": `^<7>\{"level":"debug","ts":"[^"]+","logger":"x","msg":"a"\}\n<6>\{"level":"info".*\n<4>\{"level":"warn".*\n` +
			`<3>\{"level":"error".*"error":"y"\}\n$`,
	} {
		t.Run(format, func(t *testing.T) {
			f := asJournal(t)
			log, own := New(Config{Level: "debug", Format: format}, f)
			log = log.Named("x")
			log.Debug("a")
			log.Info("a")
			log.Warn("a")
			log.Error("a", zap.Error(errors.New("y")))
			own.Close()
			if got := content(t, f); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("got %q, want %s", got, want)
			}
		})
	}
}

// A stream of another process, which this one has inherited the variable from, is no journal.
func TestLogBesideJournal(t *testing.T) {
	f := asJournal(t)
	other, err := os.Create(f.Name() + "2")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	log, own := New(Config{Level: "info", Format: "console"}, other)
	log.Info("a")
	own.Close()
	if got := content(t, other); !strings.HasSuffix(got, "Z\tINFO\ta\n") && !regexp.MustCompile(`^\d.*\tINFO\ta\n$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
	Complain(other, "b")
	Complain(f, "c\nd")
	if got := content(t, other); !strings.HasSuffix(got, "\nb\n") {
		t.Errorf("got %q", got)
	}
	if got := content(t, f); got != "<3>c\n<3>d\n" {
		t.Errorf("got %q", got)
	}
}

// lockedBuffer is written to by timers as well.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// What repeats is told some times and then summed up, each message by itself, until it pauses.
func TestLogSums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		log, own := New(Config{Level: "debug", Format: "json"}, &out)
		defer own.Close()
		told := func(message string) (lines []string) {
			synctest.Wait() // the writer has written
			for line := range strings.Lines(out.String()) {
				if strings.Contains(line, `"msg":"`+message+`"`) {
					_, fields, _ := strings.Cut(strings.TrimSpace(line), `"msg":"`+message+`"`)
					lines = append(lines, fields)
				}
			}
			return lines
		}
		a, b := log.With(zap.String("output", "a")), log.Named("b")
		for i := range 25 {
			a.Warn("fails", zap.Int("n", i))
			time.Sleep(100 * time.Millisecond)
		}
		b.Warn("fails too")
		for range 200 {
			log.Debug("detail")
		}
		var want []string
		for i := range logBurst {
			want = append(want, fmt.Sprintf(`,"output":"a","n":%d}`, i))
		}
		if diff := cmp.Diff(want, told("fails")); diff != "" {
			t.Errorf("at first (-want +got):\n%s", diff)
		}
		time.Sleep(logInterval)
		synctest.Wait()
		want = append(want, `,"output":"a","n":24,"repeated":15}`)
		if diff := cmp.Diff(want, told("fails")); diff != "" {
			t.Errorf("after the interval (-want +got):\n%s", diff)
		}
		a.Warn("fails", zap.Int("n", 25))
		want = append(want, `,"output":"a","n":25}`)
		if diff := cmp.Diff(want, told("fails")); diff != "" {
			t.Errorf("after a pause (-want +got):\n%s", diff)
		}
		for i := range logBurst {
			a.Warn("fails", zap.Int("n", 26+i))
		}
		_ = log.Sync() // the end of the process
		if got := told("fails"); got[len(got)-1] != `,"output":"a","n":35,"repeated":1}` {
			t.Errorf("at the end: %v", got)
		}
		if n, m := len(told("fails too")), len(told("detail")); n != 1 || m != 200 {
			t.Errorf("of another logger %d lines, of debug %d", n, m)
		}
	})
}

// Nothing that others have written reaches a terminal as more than text.
func TestLogIsPrintable(t *testing.T) {
	const hostile = "\x1b[2J\r\u009b31m\u202e"
	for _, format := range formats {
		var out bytes.Buffer
		log, own := New(Config{Level: "info", Format: format}, &out)
		log.Named("x").Info("message "+hostile, zap.String("field", hostile), zap.Error(errors.New(hostile)))
		own.Close()
		line := strings.TrimSuffix(out.String(), "\n")
		if strings.ContainsAny(line, "\x1b\r\n\u009b\u202e") || strings.Count(line, "31m") != 3 {
			t.Errorf("%s: %q", format, line)
		}
		if format == "json" && !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %q", line)
		}
	}
	var out lockedBuffer
	Complain(&out, "one "+hostile+"\ntwo")
	if got, want := out.String(), `one \x1b[2J\r\u009b31m\u202e`+"\ntwo\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
