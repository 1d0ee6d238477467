//go:build integration

package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// The tests' own goroutine keeps the first thread, whose namespace /proc/self shows.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) { os.Exit(lab.WithoutNames(m.Run, dirs[0], "--net")) }

func need(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
}

// add makes a namespace with a name.
func add(t *testing.T, name string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is in another namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = mountOn(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), name)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(name) })
}

func mountOn(what, name string) error {
	path := filepath.Join(dirs[0], name)
	if err := os.WriteFile(path, nil, 0); err != nil {
		return err
	}
	return unix.Mount(what, path, "none", unix.MS_BIND, "")
}

func remove(name string) {
	path := filepath.Join(dirs[0], name)
	_ = unix.Unmount(path, unix.MNT_DETACH)
	_ = os.Remove(path)
}

// watch watches, and looks at each View as a reader of events does.
func watch(t *testing.T, wanted func(string) bool) (w *Watcher, gone func() []int32) {
	t.Helper()
	var mu sync.Mutex
	var ids []int32
	w, err := Watch(Options{Wanted: wanted, Gone: func(id int32, _, _ time.Time) {
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, id)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, func() []int32 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(ids)
	}
}

func all(string) bool { return true }

// eventually waits until ok, looking at the newest View each time.
func eventually(t *testing.T, w *Watcher, what string, ok func(v *View) bool) *View {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		v := w.View()
		w.Seen(v)
		if ok(v) {
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute in vain until %s; known are %v", what, v.Spaces)
		}
	}
}

func named(v *View, name string) *Space {
	i := slices.IndexFunc(v.Spaces, func(s *Space) bool {
		_, leaves := s.Leaving()
		return s.Name == name && !leaves
	})
	if i < 0 {
		return nil
	}
	return v.Spaces[i]
}

// TestComeAndGo: a namespace has an id soon after it has a name, what was opened in it is of it, and it is there until it
// is released, whoever else has forgotten it.
func TestComeAndGo(t *testing.T) {
	need(t)
	add(t, "before")
	w, gone := watch(t, all)
	eventually(t, w, "the first namespace is known", func(v *View) bool { return named(v, "before") != nil })
	add(t, "blue")
	v := eventually(t, w, "blue is known", func(v *View) bool { return named(v, "blue") != nil })
	blue := named(v, "blue")
	if !blue.Entered() || blue.Conn() < 0 || v.Find(blue.ID) != blue || blue.Netns.Info().Name != "blue" {
		t.Fatalf("%+v", blue)
	}
	if n, err := blue.Entries(); n != 0 || err != nil {
		t.Errorf("%d entries, error %v", n, err)
	}
	if got := blue.LastSysctl(0); got == "" || got != blue.ReadSysctl(0) {
		t.Error("its sysctls cannot be read")
	}
	eventually(t, w, "it has its id", func(*View) bool {
		id, err := idOf(t, "blue")
		return err == nil && id == blue.ID
	})

	remove("blue")
	eventually(t, w, "it is leaving", func(v *View) bool {
		_, leaves := blue.Leaving()
		return leaves && v.Find(blue.ID) == blue
	})
	if !inUse(t, blue.ID) {
		t.Fatal("the namespace is gone, and nobody has released it")
	}
	blue.Release()
	eventually(t, w, "nobody knows it", func(v *View) bool { return v.Find(blue.ID) == nil })
	eventually(t, w, "it is gone", func(*View) bool { return !inUse(t, blue.ID) })
	if ids := gone(); len(ids) > 0 && ids[0] != blue.ID {
		t.Errorf("gone are %v", ids)
	}

	// The name comes back for another namespace, whose id is another one, as the first one may still be in somebody's logs.
	add(t, "blue")
	v = eventually(t, w, "blue is known again", func(v *View) bool { return named(v, "blue") != nil })
	if again := named(v, "blue"); again.ID == blue.ID {
		t.Errorf("two namespaces, one after the other, have the id %d", blue.ID)
	}
}

func idOf(t *testing.T, name string) (int32, error) {
	t.Helper()
	i, err := openIDs()
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	fd, err := openPath(filepath.Join(dirs[0], name))
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return i.of(fd)
}

func inUse(t *testing.T, id int32) (found bool) {
	t.Helper()
	i, err := openIDs()
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	if err := i.all(func(used int32) { found = found || used == id }); err != nil {
		t.Fatal(err)
	}
	return found
}

// TestIDsOfOthers: an id that somebody else has given stays, one of a namespace without a name is known, and ctlogd's own
// namespace is none of the others even if it has a name and an id.
func TestIDsOfOthers(t *testing.T) {
	need(t)
	add(t, "red")
	ids, err := openIDs()
	if err != nil {
		t.Fatal(err)
	}
	defer ids.close()
	give := func(path string, id int32) { t.Helper(); giveID(t, ids, path, id) }
	give(filepath.Join(dirs[0], "red"), 4711)
	if err := mountOn("/proc/self/ns/net", "self"); err != nil {
		t.Fatal(err)
	}
	defer remove("self")
	w, gone := watch(t, all)
	v := eventually(t, w, "red is known", func(v *View) bool { return named(v, "red") != nil })
	if s := named(v, "red"); s.ID != 4711 {
		t.Errorf("red has the id %d", s.ID)
	}
	if s := named(v, "self"); s != nil {
		t.Errorf("ctlogd's own namespace is another one: %+v", s)
	}
	give("/proc/self/ns/net", 4712)
	eventually(t, w, "the own id is known", func(v *View) bool { return v.Own == 4712 && len(v.Unnamed) == 0 })

	// Of one that nobody has a name for, the id alone is known.
	path, end := addHidden(t)
	give(path, 4713)
	eventually(t, w, "the id is known", func(v *View) bool { return slices.Equal(v.Unnamed, []int32{4713}) })
	end()
	eventually(t, w, "it is gone", func(v *View) bool { return len(v.Unnamed) == 0 && slices.Contains(gone(), 4713) })

	// Only what is asked for is known.
	w.Want(func(name string) bool { return name == "green" })
	eventually(t, w, "red is not known", func(v *View) bool { return len(v.Spaces) == 0 && slices.Equal(v.Unnamed, []int32{4711}) })
	add(t, "green")
	eventually(t, w, "green is known", func(v *View) bool { return named(v, "green") != nil })
}

func giveID(t *testing.T, ids *ids, path string, id int32) {
	t.Helper()
	fd, err := openPath(path)
	if err == nil {
		err = ids.give(fd, id)
		_ = unix.Close(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// addHidden makes a namespace without a name, which is at path until end is called.
func addHidden(t *testing.T) (path string, end func()) {
	t.Helper()
	made, quit := make(chan string), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		made <- fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		<-quit
	}()
	path, end = <-made, sync.OnceFunc(func() { close(quit) })
	t.Cleanup(end)
	return path, end
}

// TestNoticesLost: when the kernel has had no room to tell of ids that came and went, all are looked at anew, and each that may
// be another namespace's by now counts as gone, though it is in use.
func TestNoticesLost(t *testing.T) {
	need(t)
	ids, err := openIDs()
	if err != nil {
		t.Fatal(err)
	}
	defer ids.close()
	var gone []int32
	w := &Watcher{ids: ids, used: map[int32]bool{}, opts: Options{Log: zap.NewNop(), Gone: func(id int32, from, to time.Time) {
		if from.IsZero() || to.Before(from) {
			t.Errorf("%d has gone from %v to %v", id, from, to)
		}
		gone = append(gone, id)
	}}, heard: time.Now()}
	stays, _ := addHidden(t)
	goes, end := addHidden(t)
	giveID(t, ids, stays, 5001)
	giveID(t, ids, goes, 5002)
	held := &Space{ID: 5003}
	w.view.Store(&View{byID: map[int32]*Space{5003: held}})
	named, _ := addHidden(t)
	giveID(t, ids, named, 5003)
	if !w.changedIDs() || !w.used[5001] || !w.used[5002] || !w.used[5003] || len(gone) > 0 {
		t.Fatalf("in use are %v, gone %v", w.used, gone)
	}

	if err := unix.SetsockoptInt(ids.notice, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil { // the kernel's least
		t.Fatal(err)
	}
	for i := range int32(20) {
		path, _ := addHidden(t)
		giveID(t, ids, path, 5100+i)
	}
	end()
	for deadline := time.Now().Add(time.Minute); inUse(t, 5002); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the namespace does not go")
		}
	}
	w.changedIDs()
	if slices.Sort(gone); !slices.Equal(gone, []int32{5001, 5002}) {
		t.Errorf("gone are %v", gone)
	}
	if w.used[5002] || !w.used[5001] || !w.used[5003] || !w.used[5119] || w.next != 5120 {
		t.Errorf("in use are %v, the next one is %d", w.used, w.next)
	}
}

// TestForeignFiles: what has a name below /run/netns and is no namespace is not touched, as it may hang.
func TestForeignFiles(t *testing.T) {
	need(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mountOn(fifo, "hangs"); err != nil {
		t.Fatal(err)
	}
	defer remove("hangs")
	if err := os.WriteFile(filepath.Join(dirs[0], "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer remove("file")
	if err := mountOn("/proc/self/ns/mnt", "mnt"); err == nil {
		defer remove("mnt")
	}
	w, _ := watch(t, all)
	add(t, "blue")
	v := eventually(t, w, "blue is known", func(v *View) bool { return named(v, "blue") != nil })
	if len(v.Spaces) != 1 {
		t.Errorf("known are %v", v.Spaces)
	}
}

// TestHangingDirectory: names in a directory that hangs keep nobody from hearing those in the other one, whoever looks for them
// has an error, and one looker waits. When the directory answers again, they are known.
func TestHangingDirectory(t *testing.T) {
	need(t)
	if err := unix.Mount("none", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/run", unix.MNT_DETACH) })
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f, err := lab.NewFuse(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const n = 20
	hidden, _ := addHidden(t)
	docker := filepath.Join(dirs[1], "blue")
	if err := os.WriteFile(docker, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(hidden, docker, "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		hidden, _ := addHidden(t)
		if err := unix.Mount(hidden, filepath.Join(dirs[0], fmt.Sprint("a", i)), "none", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	f.Hang()
	listed, err := List()
	if err != nil {
		t.Fatal(err)
	}
	if names := listed.Names(); len(names) != n+1 {
		t.Errorf("listed are %v", names)
	}
	for range 2 {
		if _, err := listed.Inspect("a1"); err == nil || !strings.Contains(err.Error(), "hangs") {
			t.Errorf("a namespace in a directory that hangs: %v", err)
		}
	}
	if _, err := listed.Inspect("blue"); err != nil {
		t.Error(err)
	}
	if got := f.Waiting(); got != 1 {
		t.Errorf("%d wait for the directory", got)
	}
	var looks atomic.Int32
	w, err := Watch(Options{Wanted: all, Look: func(*Space, time.Time) { looks.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	eventually(t, w, "blue is known", func(v *View) bool { return named(v, "blue") != nil })
	eventually(t, w, "it has looked for the others again and again", func(*View) bool { return looks.Load() >= 3 })
	if got := f.Waiting(); got != 2 {
		t.Errorf("%d wait for the directory", got)
	}
	f.Thaw()
	eventually(t, w, "all are known", func(v *View) bool { return len(v.Spaces) == n+1 })
}

// TestManyNamespaces: many come at once and go at once, and leave no descriptor behind.
func TestManyNamespaces(t *testing.T) {
	need(t)
	n := 200
	if os.Getenv("CTLOGD_LONG") != "" {
		n = 1000
	}
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := files()
	w, _ := watch(t, all)
	for i := range n {
		add(t, fmt.Sprintf("many%d", i))
	}
	v := eventually(t, w, "all are known", func(v *View) bool { return len(v.Spaces) == n })
	ids := map[int32]bool{}
	for _, s := range v.Spaces {
		ids[s.ID] = true
		if !strings.HasPrefix(s.Netns.Info().Name, "many") || v.Find(s.ID) != s {
			t.Fatalf("%v", s)
		}
	}
	if len(ids) != n {
		t.Fatalf("%d namespaces have %d ids", n, len(ids))
	}
	for i := range n {
		remove(fmt.Sprintf("many%d", i))
	}
	released := map[*Space]bool{}
	eventually(t, w, "none is known", func(v *View) bool {
		for _, s := range v.Spaces {
			if _, leaves := s.Leaving(); leaves && !released[s] {
				released[s] = true
				s.Release()
			}
		}
		return len(v.Spaces) == 0
	})
	w.Close()
	eventuallyFiles := time.Now().Add(time.Minute)
	for files() > before {
		if time.Now().After(eventuallyFiles) {
			t.Fatalf("%d files are open, %d were before", files(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
