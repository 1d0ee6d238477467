package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// The size of the connection tracking table is the machine's, not a namespace's. The file of its entries is also the lock of
// all who make it smaller or count on it, bench/compare.sh among them; that of its buckets is the lock of those who make it
// larger.
const (
	tableDir = "/proc/sys/net/netfilter/"
	entries  = "nf_conntrack_max"
	buckets  = "nf_conntrack_buckets"
)

// SetTable makes the table one of so many entries and buckets, where 0 buckets leaves these as they are. It waits for others
// who have set it; and to make it smaller, for those who keep it. undo puts back what was there; only its first call does
// anything.
func SetTable(most, lists int) (undo func() error, err error) {
	raise, err := lockTable(buckets, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if now, err := os.ReadFile(tableDir + entries); err == nil {
		if n, err := strconv.Atoi(string(bytes.TrimSpace(now))); err == nil && n <= most {
			how = unix.LOCK_SH
		}
	}
	lock, err := lockTable(entries, how)
	if err != nil {
		raise.Close()
		return nil, err
	}
	var before []func() error
	undo = sync.OnceValue(func() error {
		defer raise.Close()
		defer lock.Close()
		var errs []error
		for _, f := range before {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	})
	for _, s := range []struct {
		key   string
		value int
	}{{entries, most}, {buckets, lists}} {
		if s.value == 0 {
			continue
		}
		old, err := os.ReadFile(tableDir + s.key)
		if err == nil {
			err = os.WriteFile(tableDir+s.key, fmt.Append(nil, s.value), 0)
		}
		if err != nil {
			return nil, errors.Join(err, undo())
		}
		before = append(before, func() error {
			if err := os.WriteFile(tableDir+s.key, old, 0); err != nil {
				return fmt.Errorf("put %s back to %s: %w", s.key, bytes.TrimSpace(old), err)
			}
			return nil
		})
	}
	return undo, nil
}

// KeepTable has the table stay as large as it is, at least, until release is called. It waits for those who have made it smaller.
func KeepTable() (release func() error, err error) {
	lock, err := lockTable(entries, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return lock.Close, nil
}

func lockTable(file string, how int) (*os.File, error) {
	f, err := os.Open(tableDir + file)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}
