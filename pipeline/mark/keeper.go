package mark

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

const (
	// saveEvery is how often the mark is written. It bounds how exactly the begin of a gap is known after a crash.
	saveEvery = time.Second

	// hangAfter is how long the disk may take before it counts as a failure.
	hangAfter = 5 * time.Second

	// finishWithin bounds the last mark.
	finishWithin = 2 * time.Second

	// loadWithin bounds how long Marked waits for the disk.
	loadWithin = 2 * time.Second

	lockName = "lock"
)

// Options tell a Keeper what it needs to know.
type Options struct {
	Dir string // "": nothing is kept on disk
	Log *zap.Logger

	Queues    func() []*deliver.Queue // those that are fed
	ReadUntil func() time.Time        // all flows that ended before it have been offered to them

	Joined time.Time // since when this process gets events
	Kept   *Socket   // the socket that outlived the last process; nil if none has
}

// Keeper keeps the mark of this process on disk. First it puts on record, in each queue, what the time since the last
// process has cost.
//
// Only its own goroutine touches the directory. As long as the directory cannot be used, the marks are in memory alone, and
// the goroutine tries again. Logging does not depend on it.
type Keeper struct {
	o      Options
	bootID string
	log    *zap.Logger
	quit   chan struct{}
	done   chan struct{}
	loaded chan struct{} // closed when the last process's mark has been looked for

	mu       sync.Mutex
	retiring []retiree       // those that a reload has taken out and that have not ended yet
	orphans  []OutputMark    // outputs that are no longer configured
	marked   map[string]bool // by the name of an output; see Marked
	failure  error           // why the directory cannot be used now; nil if it can
	since    time.Time       // when failure began, or ended

	socket *Socket // what is left to the next process; set before quit is closed

	// The goroutine's own.
	lock     *os.File
	restored bool
	warned   bool // the log says that the file system has no locks
}

// retiree is a queue that has not been fed since a time.
type retiree struct {
	*deliver.Queue
	since int64
}

// NewKeeper returns a keeper that touches nothing yet.
func NewKeeper(o Options) *Keeper {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Keeper{o: o, bootID: BootID(), log: o.Log, quit: make(chan struct{}), done: make(chan struct{}),
		loaded: make(chan struct{}), marked: map[string]bool{}}
}

// Start begins to keep the mark. Finish ends it.
func (k *Keeper) Start() {
	if k.o.Dir == "" {
		k.log.Warn("there is no state_directory: a restart leaves no gap but in archives, so what ends meanwhile is missing in silence",
			zap.String("remedy", "set state_directory, such as to /var/lib/ctlogd"))
		close(k.loaded)
		close(k.done)
		return
	}
	go k.run()
}

// Marked reports whether a mark tells what the output of that name has missed since it was written to last. If not, such as
// after a start that has found no mark, only what the output itself has says that; once it has, it calls Began. Marked waits
// a moment for the disk. While that hangs, no mark tells anything.
func (k *Keeper) Marked(name string) bool {
	k.mu.Lock()
	marked := k.marked[name]
	k.mu.Unlock()
	if marked {
		return true
	}
	select {
	case <-k.loaded:
	case <-time.After(loadWithin):
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	marked = k.marked[name]
	k.marked[name] = marked // one that was asked for stands in the mark as unmarked until it has begun
	return marked
}

// Began notes that what the output has missed until now is on record. From here on the marks of this process tell it.
func (k *Keeper) Began(name string) {
	k.mu.Lock()
	k.marked[name] = true
	k.mu.Unlock()
}

// Finish writes the mark of a process that ends in order: the queues are closed. socket is what it leaves to the next one,
// or nil. It does not wait for a disk that hangs.
func (k *Keeper) Finish(socket *Socket) {
	k.socket = socket
	close(k.quit)
	select {
	case <-k.done:
	case <-time.After(finishWithin):
		k.log.Error("state_directory: the disk hangs; the next process will take this end for a crash")
	}
}

// Failure returns why the marks are in memory alone, nil if they are on disk, and since when that is so.
func (k *Keeper) Failure() (since time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.since, k.failure
}

// run is the goroutine.
func (k *Keeper) run() {
	defer close(k.done)
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		_ = k.turn(false) // tried again, and logged
		select {
		case <-k.quit:
			if err := k.turn(true); err != nil {
				k.log.Error("state_directory: the last mark cannot be written; the next process will take this end for a crash", zap.Error(err))
			}
			if k.lock != nil {
				k.lock.Close()
			}
			return
		case <-tick.C:
		}
	}
}

// turn writes the mark. last says that the process ends in order.
func (k *Keeper) turn(last bool) error {
	hung := time.AfterFunc(hangAfter, func() { k.note(fmt.Errorf("the disk has not answered for %v", hangAfter)) })
	defer hung.Stop()
	err := k.open()
	if !k.restored && !errors.Is(err, errTaken) {
		err = errors.Join(err, k.restore()) // a mark that was not read is not written over
	}
	if err == nil {
		m := k.mark(last)
		if last {
			m.Socket = k.socket
		}
		err = m.Save(k.o.Dir)
	}
	hung.Stop()
	k.note(err)
	return err
}

// note takes the outcome of a turn, nil for success, and logs a change.
func (k *Keeper) note(err error) {
	k.mu.Lock()
	was := k.failure
	k.failure = err
	if (was == nil) != (err == nil) {
		k.since = time.Now()
	}
	k.mu.Unlock()
	switch {
	case err != nil && was == nil:
		k.log.Error("the mark is in memory for now: a crash would make a longer gap than it need be, "+
			"and without a mark at all a restart leaves none", zap.Error(err),
			zap.String("remedy", "make "+k.o.Dir+" a directory with room that ctlogd's user may write to; it is tried again"))
	case err == nil && was != nil:
		k.log.Info("the mark can be written again")
	}
}

// errTaken says that the directory is another process's.
var errTaken = errors.New("it is another ctlogd's; give each its own")

// open takes the directory for this process.
func (k *Keeper) open() error {
	if k.lock != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(k.o.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("state_directory: %w", err)
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
	case err == unix.EWOULDBLOCK:
		f.Close()
		return fmt.Errorf("state_directory %s: %w", k.o.Dir, errTaken)
	case !k.warned: // the file system has no locks
		k.warned = true
		k.log.Warn("state_directory cannot be locked: see to it that no other ctlogd has it", zap.Error(err))
	}
	k.lock = f
	return nil
}

// restore puts on record, in each queue, what the time since the last process has cost its output. On error the mark may be
// readable later.
func (k *Keeper) restore() error {
	m, err := Load(k.o.Dir)
	if err != nil && m == nil {
		return err
	}
	k.restored = true
	defer close(k.loaded)
	if err != nil {
		k.log.Error("the last process's mark is of no use; the gap begins at its file's time", zap.Error(err))
	}
	if m == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range append(slices.Clone(m.Outputs), m.Gone...) {
		k.marked[o.Name] = !o.Unmarked
	}
	var names []string
	for _, q := range k.o.Queues() {
		names = append(names, q.Name())
		for _, g := range m.Gaps(q.Name(), k.bootID, k.o.Kept, k.o.Joined) {
			k.logGap("gap on record", q.Name(), g)
			q.Lose(g)
		}
	}
	for _, o := range m.Orphans(names) {
		k.orphan(o)
	}
	return nil
}

// orphan remembers an output that is no longer configured. The lock is held.
func (k *Keeper) orphan(o OutputMark) {
	if len(k.orphans) >= maxGone {
		k.orphans = k.orphans[1:]
	}
	for _, g := range o.Gaps {
		k.logGap("gap of an output that is no longer configured; the mark keeps it until it is", o.Name, g)
	}
	k.orphans = append(k.orphans, o)
}

func (k *Keeper) logGap(what, output string, g deliver.Gap) {
	fields := []zap.Field{zap.String("output", output), zap.Stringer("cause", g.Cause),
		zap.Time("from", time.Unix(0, g.From)), zap.Time("to", time.Unix(0, g.To))}
	if g.LostKnown {
		fields = append(fields, zap.Uint64("lost", g.Lost))
	}
	k.log.Warn(what, fields...)
}

// Retire keeps queues in the mark that the pipeline has not fed since a time, until Retired.
func (k *Keeper) Retire(queues []*deliver.Queue, since time.Time) {
	k.mu.Lock()
	for _, q := range queues {
		k.retiring = append(k.retiring, retiree{q, since.UnixNano()})
	}
	k.mu.Unlock()
}

// Retired is for queues that have ended. The mark remembers since when they are gone, and the gaps that they could not
// deliver.
func (k *Keeper) Retired(queues []*deliver.Queue) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retiring = slices.DeleteFunc(k.retiring, func(r retiree) bool {
		ended := slices.Contains(queues, r.Queue)
		if ended {
			k.orphan(OutputMark{Name: r.Name(), Absent: r.since, Gaps: r.Unrecorded()})
		}
		return ended
	})
	k.reunite()
}

// Adopt gives new queues, which are fed by now, the gaps of former outputs of their names.
func (k *Keeper) Adopt() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reunite()
}

// reunite gives each orphan's gaps to the queue of its name, if there is one. The lock is held.
func (k *Keeper) reunite() {
	queues := k.o.Queues()
	k.orphans = slices.DeleteFunc(k.orphans, func(o OutputMark) bool {
		i := slices.IndexFunc(queues, func(q *deliver.Queue) bool { return q.Name() == o.Name })
		if i < 0 {
			return false
		}
		for _, g := range o.until(time.Now().UnixNano()) {
			queues[i].Lose(g)
		}
		return true
	})
}

// mark returns the mark of this moment. An output's locks are not waited for under the keeper's.
func (k *Keeper) mark(clean bool) Mark {
	read := k.o.ReadUntil() // before the queues are looked at
	k.mu.Lock()
	queues, retiring, orphans, marked := slices.Clone(k.o.Queues()), slices.Clone(k.retiring), slices.Clone(k.orphans), maps.Clone(k.marked)
	k.mu.Unlock()
	fed := len(queues)
	for _, r := range retiring {
		queues = append(queues, r.Queue)
	}
	m := New(queues, k.bootID, read, clean)
	for i, r := range retiring {
		m.Outputs[fed+i].Absent = r.since
	}
	for i := range m.Outputs {
		known, asked := marked[m.Outputs[i].Name]
		m.Outputs[i].Unmarked = asked && !known
	}
	m.Gone = orphans
	return m
}

// Check makes sure that a keeper could write to the directory.
func Check(dir string) error {
	probe := filepath.Join(dir, ".writable")
	if err := os.WriteFile(probe, nil, 0o640); err != nil {
		return fmt.Errorf("state_directory: %w; make it, writable by the user that ctlogd runs as", err)
	}
	if err := os.Remove(probe); err != nil {
		return fmt.Errorf("state_directory: %w", err)
	}
	return nil
}
