//go:build integration

package main

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What both packages hold: mode, owner and group, path. Those of the metrics and of the documentation come with their
// files.
const contents = `
drwxr-x--- root ctlogd /etc/ctlogd
-rw-r----- root ctlogd /etc/ctlogd/ctlogd.yaml
-rwxr-xr-x root root /usr/bin/ctlogd
-rw-r--r-- root root /usr/lib/modules-load.d/ctlogd.conf
-rw-r--r-- root root /usr/lib/sysctl.d/60-ctlogd.conf
-rw-r--r-- root root /usr/lib/systemd/system/ctlogd.service
-rw-r--r-- root root /usr/lib/systemd/system/ctlogd.service.d/ctlogd-early.conf
-rw-r--r-- root root /usr/lib/sysusers.d/ctlogd.conf
-rw-r--r-- root root /usr/lib/tmpfiles.d/ctlogd.conf
-rw-r--r-- root root /usr/share/bash-completion/completions/ctlogd
-rw-r--r-- root root /usr/share/doc/ctlogd/README.md
-rw-r--r-- root root /usr/share/doc/ctlogd/changelog.gz
-rw-r--r-- root root /usr/share/doc/ctlogd/copyright
-rw-r--r-- root root /usr/share/doc/ctlogd/examples/ctlogd.yaml
-rw-r--r-- root root /usr/share/doc/ctlogd/third-party.gz
-rw-r--r-- root root /usr/share/fish/vendor_completions.d/ctlogd.fish
-rw-r--r-- root root /usr/share/man/man5/ctlogd.yaml.5.gz
-rw-r--r-- root root /usr/share/man/man8/ctlogd.8.gz
`

// The same input gives the same bytes, of packages that hold what they should, and that the tools of Debian and of
// rpm's distributions take.
func TestPackages(t *testing.T) {
	for _, c := range []string{"dpkg-deb", "lintian", "rpm", "unshare"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs the command %s (make test installs it on Debian, as root)", c)
		}
	}
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64", "arm": "arm7"}[runtime.GOARCH]
	if arch == "" {
		t.Skipf("there is no package for %s", runtime.GOARCH)
	}
	t.Chdir("../..")
	first := builtTwice(t, "v1.0.0", "test", arch, "deb", "rpm")
	deb, rpm := first[0], first[1]

	t.Run("deb", func(t *testing.T) {
		var got []string
		for line := range strings.Lines(command(t, "dpkg-deb", "-c", deb)) {
			f := strings.Fields(line)
			got = append(got, f[0]+" "+strings.Replace(f[1], "/", " ", 1)+" "+strings.TrimPrefix(f[5], "."))
		}
		checkContents(t, got, "-rw-r--r-- root root /usr/share/zsh/vendor-completions/_ctlogd",
			"-rw-r--r-- root root /usr/share/lintian/overrides/ctlogd")
		if got := command(t, "dpkg-deb", "-I", deb, "conffiles"); got != "/etc/ctlogd/ctlogd.yaml\n" {
			t.Errorf("the conffiles are %q", got)
		}
		dir := t.TempDir()
		command(t, "dpkg-deb", "-x", deb, dir)
		// A static binary runs where there is nothing else, and says which it is.
		if out := command(t, "file", "-b", dir+"/usr/bin/ctlogd"); !strings.Contains(out, "statically linked") {
			t.Errorf("the binary is %s", out)
		}
		if out := command(t, dir+"/usr/bin/ctlogd", "version"); !strings.HasPrefix(out, "ctlogd 1.0.0, commit test, ") {
			t.Errorf("the binary is %s", out)
		}
		for _, page := range []string{"man8/ctlogd.8.gz", "man5/ctlogd.yaml.5.gz"} {
			if out := command(t, "man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", dir+"/usr/share/man/"+page); strings.Contains(out, ": warning") {
				t.Errorf("%s:\n%s", page, out)
			}
		}
		command(t, "bash", "-n", dir+"/usr/share/bash-completion/completions/ctlogd")
		if out := command(t, "lintian", "--allow-root", "--fail-on", "none", "--profile", "debian", deb); strings.Contains(out, "E: ") ||
			strings.Contains(out, "W: ") {
			t.Errorf("lintian:\n%s", out)
		}
	})

	t.Run("rpm", func(t *testing.T) {
		var got []string
		format := `[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]`
		for line := range strings.Lines(command(t, "rpm", "-qp", "--qf", format, rpm)) {
			got = append(got, strings.TrimSpace(line))
		}
		checkContents(t, got, "-rw-r--r-- root root /usr/share/zsh/site-functions/_ctlogd")
		if os.Geteuid() != 0 {
			t.Skip("needs root: the rest installs the package")
		}
		newer := built(t, "v1.0.1", "test", arch, "rpm")[0]
		// On a copy of this machine's files where no systemd runs.
		out := command(t, "unshare", "--mount", "sh", "-ec", `
			mount -t tmpfs tmpfs "$1"; mkdir "$1/upper" "$1/work" "$1/root"
			mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
			mount --rbind /dev "$1/root/dev"; mount -t proc proc "$1/root/proc"; mount -t tmpfs tmpfs "$1/root/run"
			cp "$2" "$1/root/first.rpm"; cp "$3" "$1/root/second.rpm"
			exec chroot "$1/root" sh -ec '
				rpm() { command rpm --force-debian --nodeps "$@" 2>&1; }
				rpm -i /first.rpm
				ctlogd version; stat -c "%a %U:%G" /etc/ctlogd /etc/ctlogd/ctlogd.yaml /var/log/ctlogd
				echo "# mine" >>/etc/ctlogd/ctlogd.yaml
				rpm -U /second.rpm
				ctlogd version; tail -n1 /etc/ctlogd/ctlogd.yaml
				rpm -e ctlogd
				find /etc/ctlogd /usr/bin /usr/share /usr/lib/systemd /usr/lib/*.d -name "*ctlogd*"
			'`, "sh", t.TempDir(), rpm, newer)
		t.Log(out)
		for _, want := range []string{"ctlogd 1.0.0, commit test", "ctlogd 1.0.1, commit test", "\n# mine\n",
			"\n750 root:ctlogd\n640 root:ctlogd\n750 ctlogd:ctlogd-readers\n", "\n/etc/ctlogd/ctlogd.yaml.rpmsave\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
		if strings.Contains(out, "\n/usr/") {
			t.Errorf("the removal has left something:\n%s", out)
		}
	})
}

// built builds packages, and returns their files in the order of the formats' names.
func built(t *testing.T, version, commit, arch string, formats ...string) []string {
	t.Helper()
	dir := t.TempDir()
	if err := run(dir, version, commit, []string{arch}, formats); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) != len(formats) {
		t.Fatalf("built %v, %v", files, err)
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Ext(a), filepath.Ext(b)) })
	return files
}

// builtTwice does so, and builds them again at another time, in another zone and with other rights for new files: the bytes are
// the same.
func builtTwice(t *testing.T, version, commit, arch string, formats ...string) []string {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", "1795647004")
	first := built(t, version, commit, arch, formats...)
	time.Sleep(1100 * time.Millisecond) // whatever takes the time of now shows
	t.Setenv("TZ", "Asia/Kathmandu")
	defer syscall.Umask(syscall.Umask(0o077))
	for i, again := range built(t, version, commit, arch, formats...) {
		a, errA := os.ReadFile(first[i])
		b, errB := os.ReadFile(again)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("two builds of %s differ (%v, %v)", filepath.Base(again), errA, errB)
		}
		t.Logf("%s: %d bytes", filepath.Base(again), len(b))
	}
	return first
}

// checkContents compares what a package holds, directories of others left out.
func checkContents(t *testing.T, got []string, more ...string) {
	t.Helper()
	want := append(strings.Split(strings.TrimSpace(contents), "\n"), more...)
	for dir, from := range map[string]string{"/usr/share/doc/ctlogd/docs": "docs", "/usr/share/ctlogd/prometheus": "packaging/prometheus",
		"/usr/share/ctlogd/grafana": "packaging/grafana"} {
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "testdata" {
				return filepath.SkipDir
			}
			if !d.IsDir() {
				want = append(want, "-rw-r--r-- root root "+dir+strings.TrimPrefix(path, from))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	want = append(want, "-rw-r--r-- root root /usr/share/ctlogd/flow.schema.json")
	got = slices.DeleteFunc(got, func(line string) bool {
		path := line[strings.LastIndexByte(line, ' ')+1:]
		return line[0] == 'd' && strings.TrimSuffix(path, "/") != "/etc/ctlogd"
	})
	for i := range got {
		got[i] = strings.TrimSuffix(got[i], "/")
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
}

// command runs a command and returns what it says.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
