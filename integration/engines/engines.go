// Package engines gives tests and benchmarks the engines that read ctlogd's records: DuckDB, ClickHouse (chdb) and Arrow,
// as Python packages.
package engines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Python returns a Python that has the engines, in an environment of its own in the user's cache. The first call makes it,
// which takes a network and a minute.
func Python() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "ctlogd-engines")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	python := filepath.Join(dir, "venv/bin/python")
	if exec.Command(python, "-c", "import duckdb, chdb, pyarrow").Run() == nil {
		return python, nil
	}
	for _, args := range [][]string{{"python3", "-m", "venv", filepath.Join(dir, "venv")},
		{python, "-m", "pip", "install", "-q", "duckdb", "chdb", "pyarrow"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w\n%s", args, err, out)
		}
	}
	return python, nil
}
