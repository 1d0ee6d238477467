package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The size of the connection tracking table is the machine's, not a namespace's. Its file is also the lock of all who
// change it or count on it, bench/compare.sh among them.
const tableDir = "/proc/sys/net/netfilter/"

// SetTable makes the table one of so many entries and buckets, where 0 buckets leaves these as they are. It waits for those
// who have set it, or keep it. undo puts back what was there; only its first call does anything.
func SetTable(entries, buckets int) (undo func() error, err error) {
	lock, err := lockTable(unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	var before []func() error
	undo = sync.OnceValue(func() error {
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
	}{{"nf_conntrack_max", entries}, {"nf_conntrack_buckets", buckets}} {
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

// KeepTable has the table stay as large as it is until release is called. It waits for those who have set it.
func KeepTable() (release func() error, err error) {
	lock, err := lockTable(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return lock.Close, nil
}

func lockTable(how int) (*os.File, error) {
	f, err := os.Open(tableDir + "nf_conntrack_max")
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
