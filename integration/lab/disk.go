package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk is an ext4 file system in a file, on a loop device: one that can be full, without inodes, read-only, or hang. It
// needs the commands mkfs.ext4, mount, umount and fsfreeze.
type Disk struct {
	Image, Dir string
	taken      []string // files that have the inodes
}

// NewDisk makes a disk of a size ("4M") in the new file image, and mounts it on dir. Its options are those of mkfs.ext4.
func NewDisk(image, dir, size string, options ...string) (*Disk, error) {
	d := &Disk{Image: image, Dir: dir}
	if err := command("truncate", "-s", size, image); err != nil {
		return nil, err
	}
	if err := command("mkfs.ext4", append(append([]string{"-q", "-F", "-m", "0"}, options...), image)...); err != nil {
		return nil, err
	}
	return d, d.Mount()
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}

// Mount mounts the disk, which was unmounted.
func (d *Disk) Mount() error { return command("mount", "-o", "loop", d.Image, d.Dir) }

// Unmount unmounts the disk, which nobody uses.
func (d *Disk) Unmount() error { return command("umount", d.Dir) }

// Close has the disk go on and takes it away, even if somebody has files open there.
func (d *Disk) Close() error {
	_ = d.Thaw() // an error says that it was not frozen
	return unix.Unmount(d.Dir, unix.MNT_DETACH)
}

// Freeze has every call that writes wait, uninterruptibly, until Thaw.
func (d *Disk) Freeze() error { return command("fsfreeze", "-f", d.Dir) }

// Thaw ends Freeze.
func (d *Disk) Thaw() error { return command("fsfreeze", "-u", d.Dir) }

// Abort makes the disk, which has on it what was written so far, read-only as the kernel does after an error. It is well
// again when it is mounted anew.
func (d *Disk) Abort() error {
	if err := command("sync", "-f", d.Dir); err != nil {
		return err
	}
	return command("mount", "-o", "remount,abort,errors=remount-ro", d.Dir)
}

// Fill takes all room but so many bytes. What others give back meanwhile is taken by the next call. Free gives it back.
func (d *Disk) Fill(but int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.Dir, &st); err != nil {
		return err
	}
	file, err := os.OpenFile(d.ballast(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, st.Bsize)
	for left := int64(st.Bavail)*st.Bsize - but; left > 0; left -= st.Bsize {
		if _, err := file.Write(block); err != nil && !errors.Is(err, unix.ENOSPC) {
			return err
		}
	}
	return file.Sync()
}

// Free gives back what Fill took.
func (d *Disk) Free() error { return os.Remove(d.ballast()) }

func (d *Disk) ballast() string { return filepath.Join(d.Dir, "ballast") }

// TakeInodes takes all inodes that are left. GiveInodes gives them back.
func (d *Disk) TakeInodes() error {
	for {
		name := filepath.Join(d.Dir, fmt.Sprint("taken", len(d.taken)))
		if err := os.WriteFile(name, nil, 0o600); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
		d.taken = append(d.taken, name)
	}
}

// GiveInodes gives n inodes back.
func (d *Disk) GiveInodes(n int) (err error) {
	for range n {
		last := len(d.taken) - 1
		err = errors.Join(err, os.Remove(d.taken[last]))
		d.taken = d.taken[:last]
	}
	return err
}
