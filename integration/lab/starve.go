//go:build integration

package lab

import (
	"errors"
	"fmt"
	"os"
)

// Starve leaves a process next to no CPU, one millisecond in half a second, by a cgroup of its own. feed gives it back; release
// takes the cgroup away, when the process has ended or not.
func Starve(pid int) (feed func() error, release func(), err error) {
	write := func(file, text string) error { return os.WriteFile(file, []byte(text), 0) }
	for _, v := range []struct{ root, period, limit, low, high string }{
		{"/sys/fs/cgroup/cpu", "cpu.cfs_period_us", "cpu.cfs_quota_us", "1000", "-1"}, // version 1
		{"/sys/fs/cgroup", "", "cpu.max", "1000 500000", "max"},
	} {
		dir := fmt.Sprintf("%s/ctlogd-test-%d", v.root, pid)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		release := func() {
			_ = write(v.root+"/cgroup.procs", fmt.Sprint(pid))
			_ = os.Remove(dir)
		}
		if v.period != "" {
			_ = write(dir+"/"+v.period, "500000")
		}
		if write(dir+"/"+v.limit, v.low) == nil && write(dir+"/cgroup.procs", fmt.Sprint(pid)) == nil {
			return func() error { return write(dir+"/"+v.limit, v.high) }, release, nil
		}
		release()
	}
	return nil, nil, errors.New("no cgroup with a limit of CPU can be made")
}
