package whois

import (
	"cmp"
	"context"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
)

// openArchive opens an archive, of gw1 and without compression unless o says otherwise, whose clock stands at now and whose row logs are sealed by this
// process.
func openArchive(t testing.TB, now int64, o archive.Options) *archive.Writer {
	t.Helper()
	o.Host, o.Observer = cmp.Or(o.Host, "gw1"), cmp.Or(o.Observer, "obs")
	o.Interval, o.Compression, o.Sync = cmp.Or(o.Interval, time.Hour), cmp.Or(o.Compression, "none"), archive.SyncNever
	o.Now = func() time.Time { return time.Unix(0, now) }
	o.Seal = func(_ context.Context, path string) (s archive.Sealed, err error) {
		s.Segment, s.Date, err = archive.Seal(path)
		return s, err
	}
	a, err := archive.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// waitFor waits until done is true.
func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the archive is not sealed, or nothing was removed from it")
		}
	}
}

// closeArchive waits until done is true, and closes the archive.
func closeArchive(t testing.TB, a *archive.Writer, done func() bool) {
	t.Helper()
	waitFor(t, done)
	if err := a.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// sealed returns what tells whether all row logs but the one that is written are sealed.
func sealed(a *archive.Writer) func() bool {
	return func() bool { return a.Stats.RowLogs.Load() <= 1 }
}
