//go:build integration

// Package systemd tests the service under a real systemd, which boots in namespaces on a throw-away overlay of the root
// file system. Nothing outside of it is changed.
package systemd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

const (
	systemdPath = "/lib/systemd/systemd"
	initEnv     = "CTLOGD_TEST_MACHINE"
	pathEnv     = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
	config      = "/etc/ctlogd/ctlogd.yaml"
	flowsFile   = "/var/log/ctlogd/flows.jsonl"
	ownLog      = "/var/log/ctlogd.log"
)

var buildDir string

func TestMain(m *testing.M) {
	if setup := os.Getenv(initEnv); setup != "" {
		fmt.Fprintln(os.Stderr, "boot:", becomeSystemd(setup)) // returns only with an error
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "ctlogd-systemd-")
	if err != nil {
		panic(err)
	}
	buildDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok. Only a machine that hangs meets the limit.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited two minutes in vain until %s", what)
		}
	}
}

// setup is what the process needs that becomes systemd.
type setup struct {
	Dir    string            // an empty directory, to mount on
	TTY    string            // a terminal for what systemd says on its console
	Cgroup string            // a cgroup of the unified hierarchy, which becomes the root of the machine's
	Files  map[string]string // what to copy into the machine: its path there, and here
	Text   map[string]string // files of the machine by their text
}

// machine is a booted systemd.
type machine struct {
	ns    *lab.NS
	flood *lab.Flood
	cmd   *exec.Cmd
	log   string       // systemd's own
	early bytes.Buffer // what was said before there was a systemd
	ended chan error   // once it has
}

// boot boots a machine that runs the service with a configuration, and drop-ins of its unit.
func boot(t *testing.T, conf string, dropIns ...string) *machine {
	t.Helper()
	text := map[string]string{config: conf}
	for i, d := range dropIns {
		text[fmt.Sprintf("/etc/systemd/system/ctlogd.service.d/%d.conf", i)] = d
	}
	return newService(t, text)
}

// newService boots a machine that runs the service, with files by their text, its configuration among them.
func newService(t *testing.T, text map[string]string) *machine {
	t.Helper()
	skipUnlessBootable(t)
	binary := filepath.Join(buildDir, "ctlogd")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/ctlogd").CombinedOutput(); err != nil {
		t.Fatalf("build ctlogd: %v\n%s", err, out)
	}
	unit, err := filepath.Abs("../../packaging/systemd")
	must(t, err)
	m := newMachine(t, map[string]string{
		"/usr/bin/ctlogd":                                            binary,
		"/usr/lib/systemd/system/ctlogd.service":                     filepath.Join(unit, "ctlogd.service"),
		"/usr/lib/systemd/system/ctlogd.service.d/ctlogd-early.conf": filepath.Join(unit, "ctlogd-early.conf"),
		"/usr/lib/sysusers.d/ctlogd.conf":                            filepath.Join(unit, "ctlogd.sysusers"),
	}, text)
	m.await(t, "ctlogd.service")
	return m
}

// await waits until a unit is active.
func (m *machine) await(t *testing.T, unit string) {
	t.Helper()
	eventually(t, unit+" is up", func() bool {
		select {
		case err := <-m.ended:
			m.ended <- err
			t.Fatalf("systemd has ended: %v", err)
		default:
		}
		_, err := m.run("systemctl", "is-active", unit)
		return err == nil
	})
}

func skipUnlessBootable(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, mounts and conntrack events")
	}
	if _, err := os.Stat(systemdPath); err != nil {
		t.Skip("needs systemd: the Debian package systemd")
	}
	for _, c := range []string{"nsenter", "ip", "systemctl", "systemd-sysusers"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs the command %s", c)
		}
	}
	if cgroup2() == "" {
		t.Skip("needs a mounted cgroup2 hierarchy")
	}
}

// newMachine boots a machine on what is installed here and on files, which are named as in setup. It wants the service,
// if there is one.
func newMachine(t *testing.T, files, text map[string]string) *machine {
	t.Helper()
	m := &machine{log: filepath.Join(t.TempDir(), "systemd.log")}
	release, err := lab.KeepTable() // the flood has more flows than the table for the guard's tests holds
	must(t, err)
	t.Cleanup(func() { must(t, release()) })
	m.ns, err = lab.New("machine")
	must(t, err)
	t.Cleanup(func() { m.ns.Close() })
	for _, key := range []string{"acct", "timestamp", "events"} {
		must(t, m.ns.Sysctl("net.netfilter.nf_conntrack_"+key, "1"))
	}
	// There is a network to send to, in which everything vanishes.
	must(t, m.ns.Run("ip", "route", "add", "default", "dev", "lo"))
	m.flood, err = m.ns.NewFlood()
	must(t, err)
	t.Cleanup(func() { _ = m.flood.Flush(); m.flood.Close() })

	s := setup{
		Dir:    t.TempDir(),
		TTY:    console(t, m.log),
		Cgroup: filepath.Join(cgroup2(), fmt.Sprintf("ctlogd-test-%d", os.Getpid())),
		Files:  files,
		Text: map[string]string{
			"/etc/systemd/system/lab.target": "[Unit]\nDefaultDependencies=no\nWants=ctlogd.service\n",
			// There is no journal here.
			"/etc/systemd/system/ctlogd.service.d/log.conf": "[Service]\nStandardError=append:" + ownLog + "\n",
		},
	}
	maps.Copy(s.Text, text)
	must(t, os.Mkdir(s.Cgroup, 0o755))
	t.Cleanup(func() { removeCgroup(s.Cgroup) })
	encoded, err := json.Marshal(s)
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	m.cmd = exec.Command(self)
	m.cmd.Env = []string{initEnv + "=" + string(encoded), pathEnv}
	m.cmd.Stderr = &m.early
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Setsid: true,
	}
	must(t, m.ns.Start(m.cmd))
	m.ended = make(chan error, 1)
	go func() { m.ended <- m.cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the machine's log:\n%s%s\nthe service's:\n%s", &m.early, tail(m.log), tail(m.path(ownLog)))
		}
		_ = m.cmd.Process.Kill() // and with it all of the machine
		<-m.ended
	})
	m.await(t, "lab.target")
	return m
}

// becomeSystemd makes the machine's file system around this process, which is the first of its PID namespace, and
// turns into systemd.
func becomeSystemd(encoded string) error {
	runtime.LockOSThread() // namespaces are a thread's, and the thread that calls exec keeps its own
	var s setup
	if err := json.Unmarshal([]byte(encoded), &s); err != nil {
		return err
	}
	// Into a cgroup of its own, the root of the hierarchy that it sees.
	if err := os.WriteFile(filepath.Join(s.Cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	root := filepath.Join(s.Dir, "root")
	var err error
	mount := func(source, target, fs string, flags uintptr, data string) {
		if err == nil {
			if e := unix.Mount(source, target, fs, flags, data); e != nil {
				err = fmt.Errorf("mount %s on %s: %w", source, target, e)
			}
		}
	}
	mkdir := func(dirs ...string) {
		for _, d := range dirs {
			err = errors.Join(err, os.MkdirAll(d, 0o755))
		}
	}
	mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	mount("tmpfs", s.Dir, "tmpfs", 0, "mode=755")
	mkdir(root, s.Dir+"/upper", s.Dir+"/work")
	mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%[1]s/upper,workdir=%[1]s/work", s.Dir))
	mount("proc", root+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	// The kernel's settings belong to the machine outside, but for the network's.
	mount(root+"/proc/sys/net", root+"/proc/sys/net", "", unix.MS_BIND, "")
	mount(root+"/proc/sys", root+"/proc/sys", "", unix.MS_BIND|unix.MS_REC, "")
	mount("", root+"/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	mount("sysfs", root+"/sys", "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	mount("cgroup2", root+"/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	mount("tmpfs", root+"/dev", "tmpfs", unix.MS_NOSUID, "mode=755")
	device := func(name, from string) {
		err = errors.Join(err, os.WriteFile(root+"/dev/"+name, nil, 0o666))
		mount(from, root+"/dev/"+name, "", unix.MS_BIND, "")
	}
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		device(d, "/dev/"+d)
	}
	device("console", s.TTY)
	err = errors.Join(err, os.Symlink("/proc/self/fd", root+"/dev/fd"), os.Symlink("pts/ptmx", root+"/dev/ptmx"))
	mkdir(root + "/dev/shm")
	for _, d := range []string{"/run", "/tmp", "/var/tmp", "/usr/lib/systemd/system-generators"} {
		mount("tmpfs", root+d, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "")
	}
	for to, from := range s.Files {
		text, e := os.ReadFile(from)
		info, e2 := os.Stat(from)
		if err = errors.Join(err, e, e2); err != nil {
			return err
		}
		mkdir(filepath.Dir(root + to))
		err = errors.Join(err, os.WriteFile(root+to, text, info.Mode().Perm()))
	}
	for to, text := range s.Text {
		mkdir(filepath.Dir(root + to))
		err = errors.Join(err, os.WriteFile(root+to, []byte(text), 0o644))
	}
	if err != nil {
		return err
	}
	if _, has := s.Files["/usr/lib/sysusers.d/ctlogd.conf"]; has {
		out, err := exec.Command("systemd-sysusers", "--root="+root, "ctlogd.conf").CombinedOutput()
		if err != nil {
			return fmt.Errorf("make the user: %w: %s", err, out)
		}
	}
	err = errors.Join(unix.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"),
		// As on a machine of one's own: what a helper of systemd's mounts, such as credentials, is there for all.
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
	if err != nil {
		return fmt.Errorf("enter the machine's file system: %w", err)
	}
	return unix.Exec(systemdPath, []string{systemdPath, "--system", "--unit=lab.target", "--log-target=console",
		"--show-status=no"}, []string{"container=ctlogd-test", pathEnv})
}

// console returns a terminal, and writes to the file what is written to it: systemd takes nothing else for a console.
func console(t *testing.T, file string) string {
	t.Helper()
	out, err := os.Create(file)
	must(t, err)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { master.Close(); out.Close() })
	var name string
	raw, err := master.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			var n uint32
			n, err = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN)
			name = fmt.Sprintf("/dev/pts/%d", n)
		}
	}))
	must(t, err)
	// systemd closes it after each line, and reading ends when nobody has it open.
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { slave.Close() })
	go io.Copy(out, master) //nolint:errcheck // it ends with an error, when the last writer is gone
	return name
}

// cgroup2 returns where the unified cgroup hierarchy is mounted.
func cgroup2() string {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

// removeCgroup removes a cgroup and those below it; they are free of processes a moment after these have been killed.
func removeCgroup(dir string) {
	for range 500 {
		removeTree(dir)
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func removeTree(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir)
}

// path is a path of the machine's as seen from here.
func (m *machine) path(p string) string { return fmt.Sprintf("/proc/%d/root%s", m.cmd.Process.Pid, p) }

// run runs a command in the machine.
func (m *machine) run(name string, args ...string) (string, error) {
	all := append([]string{"-t", strconv.Itoa(m.cmd.Process.Pid), "-m", "-p", "-n", "-u", "-i", "-C", "--", name}, args...)
	out, err := exec.Command("nsenter", all...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return strings.TrimSpace(string(out)), err
}

func (m *machine) systemctl(t *testing.T, args ...string) {
	t.Helper()
	_, err := m.run("systemctl", args...)
	must(t, err)
}

// show returns a property of the service, "" if there is none yet.
func (m *machine) show(property string) string {
	out, err := m.run("systemctl", "show", "--value", "-p", property, "ctlogd.service")
	if err != nil {
		return ""
	}
	return out
}

// signal sends a signal to the service's process, and returns its id within the machine.
func (m *machine) signal(t *testing.T, sig string) (pid string) {
	t.Helper()
	pid = m.show("MainPID")
	_, err := m.run("kill", "-"+sig, pid)
	must(t, err)
	return pid
}

// entries returns how many flows the machine's table holds, those included whose end is held back.
func (m *machine) entries(t *testing.T) int {
	t.Helper()
	s, err := m.ns.ReadSysctl("net.netfilter.nf_conntrack_count")
	must(t, err)
	n, err := strconv.Atoi(s)
	must(t, err)
	return n
}

// listeners returns how many netfilter sockets in the machine's network are members of a group.
func (m *machine) listeners(t *testing.T) (n int) {
	t.Helper()
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", m.cmd.Process.Pid))
	must(t, err)
	for line := range strings.Lines(string(table)) {
		// sk Eth Pid Groups ...
		if f := strings.Fields(line); len(f) > 3 && f[1] == strconv.Itoa(unix.NETLINK_NETFILTER) && f[3] != "00000000" {
			n++
		}
	}
	return n
}

func tail(path string) []byte {
	text, _ := os.ReadFile(path)
	return text[max(0, len(text)-8000):]
}
