package spool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// onDisk returns the newest state in the bytes of a state file.
func onDisk(t *testing.T, file []byte) (newest state) {
	t.Helper()
	var gen uint64
	for i := range 2 {
		if g, _, st, ok := parseState(file[i*slotSize:][:slotSize]); ok && g >= gen {
			gen, newest = g, st
		}
	}
	return newest
}

// segmentFirst returns the number of the first record of a segment, from its header.
func segmentFirst(t *testing.T, path string) (first uint64) {
	t.Helper()
	var p [segmentHeader]byte
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.ReadAt(p[:], 0)
	h, ok, _ := parseSegmentHeader(p[:])
	if !ok {
		t.Fatalf("%s has no header", path)
	}
	return h.first
}

// A process that is killed while it drops the oldest segment has the loss on record before the file is gone.
func TestDroppedSegmentIsOnRecordFirst(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(dir)
	cfg.MaxSize, cfg.WhenFull = 2*slotSize+20000, DropOldest
	s := openTest(t, cfg, 4096)
	removals := 0
	s.disk.remove = func(path string) error {
		removals++
		file, err := os.ReadFile(filepath.Join(dir, stateName))
		if err != nil {
			t.Fatal(err)
		}
		first, covered := segmentFirst(t, path), false
		for _, g := range onDisk(t, file).gaps {
			covered = covered || g.at <= first && first < g.end()
		}
		if !covered {
			t.Errorf("segment of record %d is removed, and no gap on disk has it", first)
		}
		return os.Remove(path)
	}
	for i := range uint64(100) {
		if _, err := s.Append(records(i*10, i*10+10)); err != nil {
			t.Fatal(err)
		}
	}
	if removals < 3 {
		t.Errorf("%d segments were removed, the test shows nothing", removals)
	}
}

// A machine that loses power while a delivered segment is removed has on disk that it is delivered.
func TestDeliveredSegmentIsSyncedFirst(t *testing.T) {
	for _, fsync := range []string{SyncInterval, SyncAlways} {
		dir := t.TempDir()
		cfg := testConfig(dir)
		cfg.Fsync = fsync
		s := openTest(t, cfg, 4096)
		var synced []byte // the state as it surely is on disk
		s.disk.sync = func(f *os.File) (err error) {
			if filepath.Base(f.Name()) == stateName {
				synced, err = os.ReadFile(f.Name())
			}
			return errors.Join(err, datasync(f))
		}
		removals := 0
		s.disk.remove = func(path string) error {
			removals++
			if synced == nil || onDisk(t, synced).cursor <= segmentFirst(t, path) {
				t.Errorf("fsync %s: %s is removed, and the disk may not know that it is delivered", fsync, path)
			}
			synced = nil
			return os.Remove(path)
		}
		appendAll(t, s, 0, 400, 10)
		b := flow.NewBatch(50, nil)
		for s.Unread() {
			b.Reset()
			n, err := s.Read(b)
			if err := errors.Join(err, s.Commit(n)); err != nil {
				t.Fatal(err)
			}
		}
		if removals < 3 {
			t.Errorf("fsync %s: %d segments were removed, the test shows nothing", fsync, removals)
		}
	}
}

// While the disk hangs, in whatever call, those who only look get their answers.
func TestAnswersWhileTheDiskHangs(t *testing.T) {
	read := func(s *Spool, n int) {
		if _, err := s.Read(flow.NewBatch(n, nil)); err != nil {
			t.Fatal(err)
		}
	}
	for name, hang := range map[string]func(s *Spool, stop func()){
		"append": func(s *Spool, stop func()) { stop(); s.Append(records(1000, 1010)) },
		"commit": func(s *Spool, stop func()) { read(s, 300); stop(); s.Commit(300) },
		"flush":  func(s *Spool, stop func()) { stop(); s.flush() },
		"close":  func(s *Spool, stop func()) { stop(); s.Close() },
	} {
		cfg := testConfig(t.TempDir())
		cfg.Fsync = SyncAlways
		s := openTest(t, cfg, 4096)
		appendAll(t, s, 0, 400, 10)
		hanging, thawed, returned := make(chan struct{}, 100), make(chan struct{}), make(chan struct{})
		stop := func() {
			s.disk = disk{
				sync:   func(*os.File) error { hanging <- struct{}{}; <-thawed; return nil },
				remove: func(path string) error { hanging <- struct{}{}; <-thawed; return os.Remove(path) },
			}
		}
		go func() { hang(s, stop); close(returned) }()
		<-hanging
		answered := make(chan struct{})
		go func() {
			s.Len()
			s.Unread()
			s.Oldest()
			s.Unsynced()
			s.Removed()
			s.Stats.Appended.Load()
			close(answered)
		}()
		select {
		case <-answered:
		case <-time.After(20 * time.Second):
			t.Errorf("%s hangs, and who only looks waits with it", name)
		}
		close(thawed)
		<-returned
	}
}

// A file system that cannot lock gets one warning, and the spool works. One that is locked stays an error.
func TestLockRefused(t *testing.T) {
	defer func() { flock = unix.Flock }()
	for _, refusal := range []unix.Errno{unix.EBADF, unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS} {
		flock = func(int, int) error { return refusal }
		core, logs := observer.New(zap.WarnLevel)
		s, err := Open(testConfig(t.TempDir()), testOutput, zap.New(core))
		if err != nil {
			t.Errorf("%v: %v", refusal, err)
			continue
		}
		appendAll(t, s, 0, 10, 10)
		diffItems(t, serials(0, 10), drain(t, s, 10))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		const want = "the file system cannot lock the spool: see that no other process uses its directory"
		if all := logs.All(); len(all) != 1 || all[0].Message != want {
			t.Errorf("%v: logged %v", refusal, all)
		}
	}
}
