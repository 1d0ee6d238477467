package spool

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	killDir  = "CTLOGD_SPOOL_TEST_DIR"
	killFrom = "CTLOGD_SPOOL_TEST_FROM"
	killSeg  = 16 << 10
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		from, err := strconv.ParseUint(os.Getenv(killFrom), 10, 64)
		if err != nil {
			panic(err)
		}
		appendAndRead(dir, from)
	}
	os.Exit(m.Run())
}

// killConfig is that of the process that is killed.
func killConfig(dir string) Config {
	return Config{Path: dir, MaxSize: 1 << 30, WhenFull: DropNewest, Fsync: SyncInterval}
}

// appendAndRead is the process that is killed. It appends records from the serial number from on, and reads and commits
// at the same time. Each step is told on standard output when it is done: "a N", all before N are appended; "d N", all
// before N are delivered; "c N", all before N are committed.
func appendAndRead(dir string, from uint64) {
	s, err := open(killConfig(dir), killSeg, testOutput, nil)
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := from; ; {
			n := 1 + rand.Uint64N(80)
			if _, err := s.Append(records(i, i+n)); err != nil {
				panic(err)
			}
			i += n
			fmt.Fprintf(os.Stdout, "a %d\n", i)
			for {
				if waiting, _ := s.Len(); waiting < 2000 {
					break
				}
			}
		}
	})
	wg.Go(func() {
		b, last := flow.NewBatch(100, nil), uint64(0)
		for {
			b.Reset()
			n, err := s.Read(b)
			if err != nil {
				panic(err)
			}
			if n == 0 {
				continue
			}
			for i := range b.Records {
				last = max(last, b.Records[i].OrigCounters.Packets) // a gap has none
			}
			fmt.Fprintf(os.Stdout, "d %d\n", last+1)
			if err := s.Commit(n); err != nil {
				panic(err)
			}
			fmt.Fprintf(os.Stdout, "c %d\n", last+1)
		}
	})
	wg.Wait()
}

// TestKill kills a process that appends and reads, again and again, and looks at what is left: every record that was
// appended and not delivered, in order, and of those that were delivered only such as were not committed.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	first, from, twice, total := uint64(0), uint64(0), uint64(0), uint64(0)
	torn := map[int64]bool{} // by the start of the time span
	for range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killDir+"="+dir, killFrom+"="+strconv.FormatUint(from, 10))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := map[string]uint64{"a": from, "d": first, "c": first}
		lines := bufio.NewScanner(out)
		for left := rand.N(400); lines.Scan(); left-- {
			var what string
			var n uint64
			if _, err := fmt.Sscanf(lines.Text(), "%s %d", &what, &n); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			done[what] = max(done[what], n)
			if left == 0 {
				cmd.Process.Kill()
			}
		}
		cmd.Process.Kill()
		cmd.Wait()

		s, err := open(killConfig(dir), killSeg, testOutput, nil)
		if err != nil {
			t.Fatal(err)
		}
		waiting, _ := s.Len()
		first = done["d"]
		b := flow.NewBatch(int(waiting)+1, nil)
		if _, err := s.Read(b); err != nil {
			t.Fatal(err)
		}
		next, begun := done["d"], false // next: of the records that are not delivered
		for i := range b.Records {
			it := itemOf(t, &b.Records[i])
			if it.Gap.Cause != 0 {
				// A frame that was torn: a process was killed inside Append, this one or, if its gap is yet to be read, an
				// earlier one.
				if !torn[it.Gap.From] && (i != len(b.Records)-1 || next < done["a"]) {
					t.Fatalf("gap %+v at %d, told %v", it.Gap, next, done)
				}
				torn[it.Gap.From] = true
				continue
			}
			if !begun && it.Serial < next {
				if it.Serial < done["c"] {
					t.Fatalf("record %d was committed, told %v", it.Serial, done)
				}
				twice += next - it.Serial
				next = it.Serial
			}
			if !begun {
				first, begun = it.Serial, true
			}
			if it.Serial != next {
				t.Fatalf("record %d, want %d, told %v", it.Serial, next, done)
			}
			next++
		}
		if next < done["a"] {
			t.Fatalf("records end at %d, told %v", next, done)
		}
		total += next - from
		from = next
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d records, %d of them twice, %d frames torn", total, twice, len(torn))
}
