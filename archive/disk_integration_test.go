//go:build integration

package archive

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestFullDisk: on a disk that is full nothing is acknowledged, and nothing of what was before is lost; once there is room
// writing and sealing go on.
func TestFullDisk(t *testing.T) {
	d, err := lab.NewDisk(filepath.Join(t.TempDir(), "image"), t.TempDir(), "8M")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	o := testOptions(filepath.Join(d.Dir, "archive"))
	o.Retention, o.Records = Retention{}, 1_000_000
	w := openTest(t, o)
	if err := d.Fill(4096); err != nil {
		t.Fatal(err)
	}
	recs := make([]*flow.Record, testRecords)
	for i := range recs {
		recs[i] = numbered(i)
	}
	taken := 0
	for err == nil && taken < testRecords {
		var n int
		n, err = w.Append(recs[taken:min(taken+10, testRecords)])
		taken += n
	}
	if !errors.Is(err, unix.ENOSPC) || taken == testRecords {
		t.Fatalf("%d records were taken, error %v", taken, err)
	}
	if err := d.Free(); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool {
		n, err := w.Append(recs[taken:])
		taken += n
		return err == nil && taken == testRecords
	})
	eachOnce(t, o.Dir, 0, testRecords)

	// A seal has no room either; it is tried until there is some.
	if err := d.Fill(0); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.rotate()
	w.mu.Unlock()
	await(t, func() bool { return w.Stats.SealErrors.Load() > 0 })
	eachOnce(t, o.Dir, 0, testRecords)
	if err := d.Free(); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return w.Stats.Seals.Load() == 1 })
	eachOnce(t, o.Dir, 0, testRecords)
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// mountNetwork mounts a folder by the SFTP of another process. The kernels that tests run on may lack NFS; what matters is the
// same: no locks that others see, no room ahead, metadata of another machine, and an end of the connection that fails all calls.
func mountNetwork(t *testing.T, shared string) (dir string, cut func()) {
	t.Helper()
	for _, need := range []string{"sshfs", "/usr/lib/openssh/sftp-server"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skip("needs sshfs and openssh-sftp-server: ", err)
		}
	}
	dir = t.TempDir()
	server := exec.Command("/usr/lib/openssh/sftp-server")
	mount := exec.Command("sshfs", ":"+shared, dir, "-f", "-o", "passive,sshfs_sync,cache=no")
	for _, c := range [][2]*exec.Cmd{{server, mount}, {mount, server}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close() // theirs stay
		defer w.Close()
		c[0].Stdin, c[1].Stdout = r, w
	}
	for _, c := range []*exec.Cmd{server, mount} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL { // it goes with its server
			t.Errorf("unmount: %v", err)
		}
	})
	await(t, func() bool {
		var here, there unix.Stat_t
		return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &there) == nil && here.Dev != there.Dev
	})
	return dir, func() { _ = server.Process.Kill() }
}

// TestNetworkFileSystem: an archive on a network's file system writes, seals by the real child, catalogues and removes as on a
// disk; when the server is gone, calls fail and nothing that was acknowledged is lost.
func TestNetworkFileSystem(t *testing.T) {
	shared := t.TempDir()
	dir, cut := mountNetwork(t, shared)
	o := testOptions(filepath.Join(dir, "archive"))
	o.Seal = Child
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	appendTest(t, w, 0, 120)
	await(t, func() bool { return w.Stats.Seals.Load() == 2 && w.Stats.RemovedAge.Load() == 1 })
	eachOnce(t, o.Dir, oldRecords, 120)
	if v := verifyTest(t, o.Dir, VerifyOptions{}); v.Verdict != Whole || len(v.Removed) != 1 {
		t.Errorf("verified: %s", asJSON(v))
	}
	cut()
	safe := 120
	for ; safe < testRecords; safe++ {
		if _, err := w.Append([]*flow.Record{numbered(safe)}); err != nil {
			t.Logf("without the server: %v", err)
			break
		}
	}
	if safe == testRecords {
		t.Error("all is acknowledged without a server")
	}
	if err := w.Close(context.Background()); err == nil {
		t.Error("closing without a server is no error")
	}
	kept := filepath.Join(shared, "archive")
	n := counts(t, kept)
	for i := oldRecords; i < safe; i++ {
		if n[i] != 1 {
			t.Errorf("record %d is there %d times", i, n[i])
		}
	}
	// On the server's own disk it goes on.
	o.Dir = kept
	w = openTest(t, o)
	appendTest(t, w, safe+1, testRecords)
	until(t, "a note", func() bool { // which the server may have gone before
		_, err := os.Stat(filepath.Join(kept, "host=gw1", noteName))
		return err == nil
	})
}
