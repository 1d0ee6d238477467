//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/output/ipfix/listen"
)

// disk is a file system that can be full.
type disk struct{ dir string }

const diskSize = 8 << 30 // of memory, as far as it is used

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t.TempDir()}
	must(t, unix.Mount("tmpfs", d.dir, "tmpfs", 0, fmt.Sprint("size=", diskSize)))
	restore(t, func() { _ = unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

// fill leaves no room, by making the disk as small as what is on it.
func (d *disk) fill(t *testing.T) {
	t.Helper()
	eventually(t, "the disk is full", func() bool {
		var s unix.Statfs_t
		must(t, unix.Statfs(d.dir, &s))
		used := max(s.Blocks-s.Bfree, 1) * uint64(s.Bsize)
		err := unix.Mount("tmpfs", d.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprint("size=", used))
		if err == unix.EINVAL { // more is on it by now
			return false
		}
		must(t, err)
		return true
	})
}

func (d *disk) free(t *testing.T) {
	t.Helper()
	must(t, unix.Mount("tmpfs", d.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprint("size=", diskSize)))
}

// frozenDisk is a file system that can be made to hang.
type frozenDisk struct {
	disk
	lab *lab.Disk
}

func newFrozenDisk(t *testing.T) *frozenDisk {
	t.Helper()
	d, err := lab.NewDisk(filepath.Join(t.TempDir(), "image"), t.TempDir(), "2G")
	must(t, err)
	restore(t, func() { _ = d.Close() })
	return &frozenDisk{disk{d.Dir}, d}
}

// freeze makes all that write wait, uninterruptibly, until thaw.
func (d *frozenDisk) freeze(t *testing.T) {
	t.Helper()
	must(t, d.lab.Freeze())
	t.Cleanup(func() { _ = d.lab.Thaw() }) // before the daemon's end is awaited
}

func (d *frozenDisk) thaw(t *testing.T) {
	t.Helper()
	must(t, d.lab.Thaw())
}

// awaitStopped waits until every thread of a process that was sent SIGSTOP has stopped.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the process has stopped", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		must(t, err)
		for _, s := range stats {
			b, err := os.ReadFile(s)
			if err != nil {
				continue
			}
			// pid (comm) state
			if f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])); f[0] != "T" {
				return false
			}
		}
		return true
	})
}

// spoolCursor returns up to where the state file says that the spool is delivered (pipeline/spool/state.go).
func spoolCursor(t *testing.T, dir string) (cursor uint64) {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(dir, "state"))
	must(t, err)
	const slot = 32 << 10
	var newest uint64
	for off := 0; off+slot <= len(file); off += slot {
		if gen := binary.LittleEndian.Uint64(file[off+16:]); gen > newest {
			newest, cursor = gen, binary.LittleEndian.Uint64(file[off+32:])
		}
	}
	return cursor
}

// spoolWaits reports whether there are segments in the spool.
func spoolWaits(t *testing.T, dir string) bool {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	must(t, err)
	return len(segments) > 0
}

// collector is an IPFIX collector that can be cut off. It is so by dropping what is sent to it: then all that its host
// has acknowledged has been read, as no sender could know of the rest.
type collector struct {
	ns *lab.NS

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]time.Time // when something was read last
	flows    []collected
	last     int // the highest number
	gaps     []gap
	lost     int // of all gaps
	err      error
	readers  sync.WaitGroup
}

type collected struct {
	number     int
	start, end int64
}

func newCollector(t *testing.T, ns *lab.NS) *collector {
	t.Helper()
	c := &collector{ns: ns, conns: map[net.Conn]time.Time{}, last: -1}
	c.listen(t)
	t.Cleanup(func() { c.hangUp() })
	return c
}

func (c *collector) listen(t *testing.T) {
	t.Helper()
	l, err := c.ns.Listen("tcp4", "127.0.0.1:4739")
	must(t, err)
	c.mu.Lock()
	c.listener = l
	c.mu.Unlock()
	c.readers.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.mu.Lock()
			c.conns[conn] = time.Now()
			c.mu.Unlock()
			c.readers.Go(func() { c.read(conn) })
		}
	})
}

// cut takes the collector from the network and ends it.
func (c *collector) cut(t *testing.T) {
	t.Helper()
	must(t, c.ns.Nft("table inet cut { chain in { type filter hook input priority 0; tcp dport 4739 drop; }; }"))
	eventually(t, "the collector has read what its host has", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, at := range c.conns {
			if time.Since(at) < 300*time.Millisecond {
				return false
			}
		}
		return true
	})
	c.hangUp()
}

func (c *collector) hangUp() {
	c.mu.Lock()
	c.listener.Close()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.readers.Wait()
}

// join starts the collector again.
func (c *collector) join(t *testing.T) {
	t.Helper()
	c.listen(t)
	must(t, c.ns.Run("nft", "delete", "table", "inet", "cut"))
}

// stop waits until all connections have ended, from the other side.
func (c *collector) stop(t *testing.T) {
	t.Helper()
	eventually(t, "the collector has read all", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.conns) == 0
	})
	c.hangUp()
	if c.err != nil {
		t.Errorf("collector: %v", c.err)
	}
}

// expect prepares for another process: the total that it tells begins anew.
func (c *collector) expect(t *testing.T) {
	t.Helper()
	eventually(t, "the collector has read what the last process has sent", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lost = 0
		return len(c.conns) == 0
	})
}

func (c *collector) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.flows)
}

func (c *collector) hasSince(first int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last >= first
}

// read reads messages until the connection ends, which may be in the middle of one.
func (c *collector) read(conn net.Conn) {
	defer func() {
		conn.Close()
		c.mu.Lock()
		delete(c.conns, conn)
		c.mu.Unlock()
	}()
	d := listen.NewDecoder()
	in := bufio.NewReaderSize(conn, 1<<16)
	var head [4]byte
	var lines []byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		message := make([]byte, max(binary.BigEndian.Uint16(head[2:]), 4))
		copy(message, head[:])
		if _, err := io.ReadFull(in, message[4:]); err != nil {
			return
		}
		var err error
		lines, err = d.Append(lines[:0], "", message)
		c.mu.Lock()
		c.conns[conn] = time.Now()
		if err == nil {
			for line := range bytes.Lines(lines) {
				err = errors.Join(err, c.record(line))
			}
		}
		if err != nil && c.err == nil {
			c.err = err
		}
		c.mu.Unlock()
	}
}

// record notes one record.
func (c *collector) record(line []byte) error {
	var l struct {
		Template int `json:"template"`
		Record   struct {
			Start   time.Time  `json:"flowStartMilliseconds"`
			End     time.Time  `json:"flowEndMilliseconds"`
			Proto   uint8      `json:"protocolIdentifier"`
			Src     netip.Addr `json:"sourceIPv4Address"`
			Sport   uint16     `json:"sourceTransportPort"`
			Dst     netip.Addr `json:"destinationIPv4Address"`
			Dport   uint16     `json:"destinationTransportPort"`
			NATSrc  netip.Addr `json:"postNATSourceIPv4Address"`
			NATPort uint16     `json:"postNAPTSourceTransportPort"`
			From    time.Time  `json:"observationTimeMilliseconds"`
			To      time.Time  `json:"observationTimeMilliseconds_2"`
			Lost    int        `json:"notSentFlowTotalCount"`
		} `json:"record"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return err
	}
	r := &l.Record
	const reliability, typeRecords, stats = 401, 403, 400
	switch l.Template {
	case reliability:
		g := gap{cause: "ipfix", from: r.From.UnixNano(), to: r.To.UnixNano() + 1e6, lost: r.Lost - c.lost}
		if g.lost == 0 {
			g.lost = -1
		}
		c.lost = r.Lost
		c.gaps = append(c.gaps, g)
		return nil
	case typeRecords, stats:
		return nil
	}
	i, ok := lab.FlowNumber(r.NATSrc, r.NATPort)
	got := lab.FloodFlow{Proto: r.Proto, Src: r.Src, Dst: r.Dst, NATSrc: r.NATSrc,
		SrcPort: r.Sport, NATPort: r.NATPort, DstPort: r.Dport}
	if !ok || got != lab.FlowAt(i) {
		return fmt.Errorf("no flow of the generator's: %s", line)
	}
	c.flows = append(c.flows, collected{i, r.Start.UnixNano(), r.End.UnixNano()})
	c.last = max(c.last, i)
	return nil
}
