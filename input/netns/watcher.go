package netns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// LookEvery is how often the Watcher looks around if nothing calls it.
	LookEvery = time.Second

	// settle is how long it waits after a change for others that come with it.
	settle = 5 * time.Millisecond

	// quietFor is the least time between two complaints, of whatever kind.
	quietFor = time.Minute
)

// Options are what a Watcher needs. All but Wanted may be left out.
type Options struct {
	Log *zap.Logger

	// Wanted says which names are asked for.
	Wanted func(name string) bool

	// Look is called for each Space about once a second.
	Look func(s *Space, now time.Time)

	// Gone is called for each id whose namespace has gone, or may have, between two times. It is called before there is a
	// View in which the id is another namespace's.
	Gone func(id int32, from, to time.Time)

	// Changed is called when there is another View.
	Changed func()
}

// Watcher watches the namespaces of the machine.
type Watcher struct {
	opts   Options
	wanted atomic.Pointer[func(string) bool]
	view   atomic.Pointer[View]
	seen   atomic.Uint64 // View.n of the one that the reader of events has seen last

	wakefd int
	cancel context.CancelFunc
	ended  chan struct{}

	// The goroutine's own.
	ids     *ids
	mounts  *mounts
	moved   bool             // the list of mounts has changed since it was read
	current map[string]mount // that list, by name
	own     uint64           // inode of ctlogd's namespace
	ownFD   int
	spaces  map[string]*Space
	leaving []*Space
	closing []closing
	used    map[int32]bool // ids that namespaces have
	heard   time.Time      // when changedIDs last looked which have gone
	next    int32          // the id that is given next
	failed  map[string]failure
	warned  time.Time
	looked  time.Time
	opener  opener
}

// closing is a Space that is in no View any more: the View with the number n is the first without it.
type closing struct {
	space *Space
	n     uint64
}

// failure is a mount that could not be used.
type failure struct {
	mount mount
	at    time.Time
}

// Watch starts to watch. The View is empty until the first look is over.
func Watch(opts Options) (_ *Watcher, err error) {
	if opts.Log == nil {
		opts.Log = zap.NewNop()
	}
	if opts.Look == nil {
		opts.Look = func(*Space, time.Time) {}
	}
	if opts.Gone == nil {
		opts.Gone = func(int32, time.Time, time.Time) {}
	}
	if opts.Changed == nil {
		opts.Changed = func() {}
	}
	w := &Watcher{opts: opts, wakefd: -1, ownFD: -1, spaces: map[string]*Space{}, used: map[int32]bool{}, failed: map[string]failure{}, moved: true}
	w.wanted.Store(&opts.Wanted)
	w.view.Store(&View{Own: notAssigned})
	defer func() {
		if err != nil {
			w.closeFiles()
		}
	}()
	if w.wakefd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("open eventfd: %w", err)
	}
	if w.ids, err = openIDs(); err != nil {
		return nil, err
	}
	if w.mounts, err = openMounts(); err != nil {
		return nil, err
	}
	if w.ownFD, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the own network namespace: %w", err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(w.ownFD, &st); err != nil {
		return nil, fmt.Errorf("look at the own network namespace: %w", err)
	}
	w.own, w.heard = st.Ino, time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended = cancel, make(chan struct{})
	go func() {
		defer close(w.ended)
		w.run(ctx)
	}()
	return w, nil
}

// View returns what is known now. It never returns nil.
func (w *Watcher) View() *View { return w.view.Load() }

// Ready reports whether the first look is over.
func (v *View) Ready() bool { return v.n > 0 }

// Seen is called by the reader of events with each View that it goes by from now on.
func (w *Watcher) Seen(v *View) { w.seen.Store(v.n) }

// Want changes which names are asked for.
func (w *Watcher) Want(wanted func(name string) bool) {
	w.wanted.Store(&wanted)
	w.wake()
}

func (w *Watcher) wake() { _, _ = unix.Write(w.wakefd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Close ends the Watcher, within a second or so, and lets all namespaces go.
func (w *Watcher) Close() {
	w.cancel()
	w.wake()
	<-w.ended
	for _, s := range w.spaces {
		s.close()
	}
	for _, s := range w.leaving {
		s.close()
	}
	for _, c := range w.closing {
		c.space.close()
	}
	w.closeFiles()
}

func (w *Watcher) closeFiles() {
	closeFD(w.wakefd)
	closeFD(w.ownFD)
	if w.ids != nil {
		w.ids.close()
	}
	if w.mounts != nil {
		w.mounts.close()
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

func (w *Watcher) run(ctx context.Context) {
	w.numberIDs()
	for ctx.Err() == nil {
		w.look(time.Now())
		fds := [...]unix.PollFd{{Fd: int32(w.mounts.fd), Events: unix.POLLPRI}, {Fd: int32(w.ids.notice), Events: unix.POLLIN},
			{Fd: int32(w.wakefd), Events: unix.POLLIN}}
		timeout := LookEvery
		if len(w.closing) > 0 {
			timeout = settle
		}
		n, err := unix.Poll(fds[:], int(timeout/time.Millisecond))
		if err != nil && err != unix.EINTR {
			w.complain("wait for changes of the namespaces", err)
			time.Sleep(LookEvery)
		}
		w.moved = w.moved || fds[0].Revents != 0
		if fds[2].Revents != 0 {
			var count [8]byte
			_, _ = unix.Read(w.wakefd, count[:])
		} else if n > 0 {
			time.Sleep(settle)
		}
	}
}

// numberIDs finds out which ids are in use. Those that are given come behind all of them, so that none is soon used again.
func (w *Watcher) numberIDs() {
	clear(w.used)
	err := w.ids.all(func(id int32) {
		w.used[id] = true
		if id >= w.next && id < 1<<30 {
			w.next = id + 1
		}
	})
	if err != nil {
		w.complain("see the ids of namespaces", err)
	}
}

// look brings everything up to date.
func (w *Watcher) look(now time.Time) {
	changed := !w.View().Ready()
	if w.closeSeen(); w.changedIDs() {
		changed = true
	}
	if w.moved { // to read a thousand of them each second would be the most that the Watcher does
		current, err := w.mounts.read()
		if err != nil {
			w.complain("see the names of namespaces", err)
			return
		}
		w.current, w.moved = current, false
	}
	current := w.current
	wanted := *w.wanted.Load()
	inodes := map[uint64]bool{w.own: true}
	for name, s := range w.spaces {
		m, there := current[name]
		switch {
		case !wanted(name):
			delete(w.spaces, name)
			w.leaving = append(w.leaving, s)
			s.released.Store(true) // nobody asks for what it has left
		case !there || m.inode != s.inode:
			delete(w.spaces, name)
			w.leaving = append(w.leaving, s)
			s.leaving.Store(now.UnixNano())
		default:
			inodes[s.inode] = true
			continue
		}
		changed = true
	}
	for name := range w.failed {
		if _, there := current[name]; !there {
			delete(w.failed, name)
		}
	}
	var added []*Space
	for _, name := range slices.Sorted(maps.Keys(current)) {
		m := current[name]
		if w.spaces[name] != nil || inodes[m.inode] || !wanted(name) {
			continue
		}
		if f, ok := w.failed[name]; ok && f.mount == m && now.Sub(f.at) < LookEvery {
			continue
		}
		inodes[m.inode] = true
		if s := w.add(name, m, now); s != nil {
			added = append(added, s)
			changed = true
		}
	}
	if w.identify(added) {
		changed = true
	}
	before := len(w.leaving)
	w.leaving = slices.DeleteFunc(w.leaving, func(s *Space) bool {
		if !s.released.Load() {
			return false
		}
		w.closing = append(w.closing, closing{s, w.View().n + 1})
		return true
	})
	if changed || len(w.leaving) != before {
		w.publish()
	}
	if now.Sub(w.looked) >= LookEvery {
		w.looked = now
		if own, err := w.ids.of(w.ownFD); err == nil && own != w.View().Own {
			w.publish()
		}
		for _, s := range w.spaces {
			w.opts.Look(s, now)
		}
	}
}

// changedIDs takes note of ids that have come and gone.
func (w *Watcher) changedIDs() (changed bool) {
	gone := func(id int32) {
		changed = true
		w.opts.Gone(id, w.heard, time.Now())
	}
	err := w.ids.changes(func(id int32, came bool) {
		if came {
			w.used[id], changed = true, true
		} else {
			delete(w.used, id)
			gone(id)
		}
	})
	if err != nil { // some were missed: of what is not held, no id is certainly that of the same namespace
		before := maps.Clone(w.used)
		w.numberIDs()
		for id := range before {
			if w.View().Find(id) == nil || !w.used[id] {
				gone(id)
			}
		}
	}
	w.heard = time.Now()
	return changed
}

// add opens what has a name from now on, and returns nil if it cannot.
func (w *Watcher) add(name string, m mount, now time.Time) *Space {
	s := &Space{ID: notAssigned, Name: name, Since: now, path: m.path, inode: m.inode, fd: -1, wake: w.wake}
	var err error
	if s.fd, err = w.opener.open(m); err == nil {
		s.ID, err = w.ids.of(s.fd)
	}
	if err != nil {
		w.fail(name, m, now, err)
		closeFD(s.fd)
		return nil
	}
	if s.in, err = enter(s.fd); err != nil {
		w.opts.Log.Error("a network namespace cannot be entered: its table is neither read nor guarded, and what is in it when it goes is lost",
			zap.String("netns", name), zap.Error(err))
	}
	for i := range Sysctls { // for who asks what they were last
		s.ReadSysctl(i)
	}
	return s
}

func (w *Watcher) fail(name string, m mount, now time.Time, err error) {
	if _, again := w.failed[name]; !again {
		w.opts.Log.Error("events of a network namespace are not heard", zap.String("netns", name), zap.Error(err))
	}
	w.failed[name] = failure{m, now}
}

// identify takes in what was added, and gives those an id that have none. They are in the View before: so the first event
// of each finds it. changed says that the View is out of date again.
func (w *Watcher) identify(added []*Space) (changed bool) {
	var without []*Space
	for _, s := range added {
		if s.ID == notAssigned {
			s.ID = w.next
			w.next++
			without = append(without, s)
		}
		w.take(s)
	}
	if len(without) == 0 {
		return false
	}
	w.publish()
	for _, s := range without {
		err := w.ids.give(s.fd, s.ID)
		for errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOSPC) {
			// Somebody else has given this namespace an id meanwhile, or this id to another one.
			w.closing = append(w.closing, closing{&Space{fd: -1, Netns: s.Netns}, w.View().n + 1})
			s, changed = w.again(s), true
			if s.ID, err = w.ids.of(s.fd); err == nil && s.ID == notAssigned {
				s.ID = w.next
				w.next++
				err = w.ids.give(s.fd, s.ID)
			}
			w.take(s)
		}
		if err != nil {
			changed = true
			delete(w.spaces, s.Name)
			w.fail(s.Name, mount{s.path, s.inode}, time.Now(), err)
			s.released.Store(true)
			w.leaving = append(w.leaving, s)
			continue
		}
		w.used[s.ID] = true
	}
	return changed
}

// again returns a Space like s, to be given another id: that of one in a View never changes.
func (w *Watcher) again(s *Space) *Space {
	return &Space{Name: s.Name, Since: s.Since, path: s.path, inode: s.inode, fd: s.fd, in: s.in, wake: w.wake}
}

func (w *Watcher) take(s *Space) {
	s.Netns = flow.HoldNetns(s.ID, s.Name)
	w.spaces[s.Name] = s
	w.opts.Log.Info("events of a network namespace are heard", zap.String("netns", s.Name), zap.Int32("nsid", s.ID))
}

// publish makes a View of what is known.
func (w *Watcher) publish() {
	w.changedIDs() // what has given its id to one that was added is gone before
	v := &View{Own: notAssigned, n: w.View().n + 1, byID: map[int32]*Space{}}
	if own, err := w.ids.of(w.ownFD); err == nil {
		v.Own = own
	}
	for _, s := range w.leaving { // first: what has its id now is newer
		v.Spaces = append(v.Spaces, s)
		v.byID[s.ID] = s
	}
	for _, s := range w.spaces {
		v.Spaces = append(v.Spaces, s)
		v.byID[s.ID] = s
	}
	slices.SortFunc(v.Spaces, func(a, b *Space) int { return cmp.Compare(a.Name, b.Name) })
	for id := range w.used {
		if v.byID[id] == nil && id != v.Own {
			v.Unnamed = append(v.Unnamed, id)
		}
	}
	slices.Sort(v.Unnamed)
	w.view.Store(v)
	w.opts.Changed()
}

// closeSeen closes what the reader of events cannot meet any more.
func (w *Watcher) closeSeen() {
	seen := w.seen.Load()
	w.closing = slices.DeleteFunc(w.closing, func(c closing) bool {
		if c.n > seen {
			return false
		}
		c.space.close()
		return true
	})
}

func (w *Watcher) complain(what string, err error) {
	if now := time.Now(); now.Sub(w.warned) >= quietFor {
		w.warned = now
		w.opts.Log.Error(what, zap.Error(err))
	}
}
