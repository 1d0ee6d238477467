package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline"
)

// dead is an output that takes nothing.
type dead string

func (d dead) Name() string                                       { return string(d) }
func (d dead) Write(context.Context, []*flow.Record) (int, error) { return 0, errors.New("dead") }
func (d dead) Close(context.Context) error                        { return nil }
func deadQueue(name string) *pipeline.Queue {
	return pipeline.NewQueue(dead(name), nil, 0, zap.NewNop())
}
func runQueues(queues ...*pipeline.Queue) (p *pipeline.Pipeline) {
	p = pipeline.New(nil, queues)
	p.Start()
	return p
}
func openTestState(t *testing.T, dir string, log *zap.Logger) *state {
	t.Helper()
	s, err := openState(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The gaps of an output that a reload or another configuration takes out wait until there is one of its name again.
func TestGapsOutliveTheirOutput(t *testing.T) {
	dir := t.TempDir()
	gap := pipeline.Gap{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: 3, LostKnown: true, Output: "old"}, From: 1, To: 2}

	// A process takes the output out.
	s := openTestState(t, dir, zap.NewNop())
	old, p := deadQueue("old"), runQueues(deadQueue("a"))
	retiring := runQueues(old)
	old.Lose(gap)
	s.retire([]*pipeline.Queue{old})
	saved := func(clean bool) *pipeline.Mark {
		t.Helper()
		m := s.mark(p, time.Unix(0, 5), clean)
		if err := m.Save(dir); err != nil {
			t.Fatal(err)
		}
		got, err := pipeline.LoadMark(dir)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if o := saved(false).Outputs; len(o) != 2 || o[1].Name != "old" || !cmp.Equal(o[1].Gaps, []pipeline.Gap{gap}) {
		t.Errorf("while it ends: %+v", o)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	retiring.Close(ended)
	s.retired([]*pipeline.Queue{old})
	want := []pipeline.OutputMark{{Name: "old", Gaps: []pipeline.Gap{gap}}}
	m := saved(true)
	if diff := cmp.Diff(want, m.Gone); diff != "" || len(m.Outputs) != 1 {
		t.Errorf("when it has ended (-want +got):\n%s%+v", diff, m.Outputs)
	}
	p.Close(ended)
	s.close()

	// The next one has no such output, either, and then has.
	core, logged := observer.New(zap.WarnLevel)
	s = openTestState(t, dir, zap.New(core))
	defer s.close()
	a := deadQueue("a")
	p = runQueues(a)
	defer p.Close(ended)
	s.restore([]*pipeline.Queue{a}, &pipeline.Socket{})
	if diff := cmp.Diff(want, saved(false).Gone); diff != "" {
		t.Errorf("after a start (-want +got):\n%s", diff)
	}
	if n := logged.FilterField(zap.String("output", "old")).Len(); n != 1 {
		t.Errorf("the log tells of it %d times, want once", n)
	}
	back := deadQueue("old")
	s.adopt(back)
	if diff := cmp.Diff([]pipeline.Gap{gap}, back.Unrecorded()); diff != "" {
		t.Errorf("back again (-want +got):\n%s", diff)
	}
	if gone := saved(false).Gone; len(gone) != 0 {
		t.Errorf("still kept: %+v", gone)
	}
}

func TestStateDirectoryIsOnes(t *testing.T) {
	dir := t.TempDir()
	s := openTestState(t, dir, zap.NewNop())
	if _, err := openState(dir, zap.NewNop()); err == nil || !strings.Contains(err.Error(), "another ctlogd's") {
		t.Errorf("the second one gets %v", err)
	}
	s.close()
	openTestState(t, dir, zap.NewNop()).close()
	if _, err := openState(filepath.Join(dir, "missing"), zap.NewNop()); err == nil {
		t.Error("a directory that is missing is none")
	}
}

// A mark that cannot be written is told once, and that it can again.
func TestMarkCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.InfoLevel)
	s := openTestState(t, dir, zap.New(core))
	defer s.close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.keep(ctx, pipeline.New(nil, nil), func() time.Time { return time.Unix(0, 5) })
	}()
	await := func(message string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); logged.FilterMessageSnippet(message).Len() == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never logged: %s", message)
			}
		}
	}
	await("a crash now")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	await("can be written again")
	cancel()
	<-ended
	if n := logged.Len(); n != 2 {
		t.Errorf("%d lines in the log, want 2: %v", n, logged.All())
	}
}
