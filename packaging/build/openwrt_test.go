//go:build integration

package main

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a package for OpenWrt holds: mode, owner and group, path.
const routerContents = `
drwxr-x--- root/root etc/ctlogd
-rw-r----- root/root etc/ctlogd/ctlogd.yaml
-rwxr-xr-x root/root etc/init.d/ctlogd
-rw-r--r-- root/root etc/sysctl.d/60-ctlogd.conf
-rw-r--r-- root/root lib/upgrade/keep.d/ctlogd
-rwxr-xr-x root/root usr/bin/ctlogd
-rw-r--r-- root/root usr/share/doc/ctlogd/copyright
-rw-r--r-- root/root usr/share/doc/ctlogd/third-party.gz
`

// The packages for OpenWrt are the same bytes each time, hold what they should, and what they hold works as far as it can be
// tried without OpenWrt: there are its shell, busybox, and stand-ins for what rc.common and procd.sh define. Neither opkg nor
// apk is to be had here, so the packages are taken apart by tar, as whose archives their formats are defined.
func TestOpenWrt(t *testing.T) {
	for _, c := range []string{"busybox", "shellcheck", "unshare"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs the command %s (make test installs it on Debian, as root)", c)
		}
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "arm": "arm"}[runtime.GOARCH]
	if arch == "" {
		t.Skipf("there is no package for %s that runs here", runtime.GOARCH)
	}
	t.Chdir("../..")
	first := builtTwice(t, "v1.0.0-4-g9a9dc29", "9a9dc29", arch, "apk", "ipk")
	apk, ipk := first[0], first[1]
	for got, want := range map[string]string{apk: "ctlogd_1.0.0_p4_" + arch + ".apk", ipk: "ctlogd_1.0.0+4.9a9dc29_" + arch + ".ipk"} {
		if filepath.Base(got) != want {
			t.Errorf("%s is called %s", want, got)
		}
	}

	scripts := map[string]string{} // where they are taken apart, by the format
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	t.Run("ipk", func(t *testing.T) {
		command(t, "tar", "-C", dir, "-xzf", ipk)
		control := filepath.Join(dir, "control")
		for archive, to := range map[string]string{"data.tar.gz": root, "control.tar.gz": control} {
			if err := os.Mkdir(to, 0o755); err != nil {
				t.Fatal(err)
			}
			command(t, "tar", "-C", to, "-xzf", filepath.Join(dir, archive))
		}
		checkRouter(t, command(t, "tar", "-tvzf", filepath.Join(dir, "data.tar.gz")))
		fields, err := os.ReadFile(control + "/control")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Package: ctlogd\n", "Version: 1.0.0+4.9a9dc29-1\n", "Architecture: all\n",
			"Depends: kmod-nf-conntrack-netlink\n"} {
			if !strings.Contains(string(fields), want) {
				t.Errorf("the control file has no %q:\n%s", want, fields)
			}
		}
		if kept, err := os.ReadFile(control + "/conffiles"); strings.TrimSpace(string(kept)) != "/etc/ctlogd/ctlogd.yaml" {
			t.Errorf("the conffiles are %q, %v", kept, err)
		}
		scripts["preinst"], scripts["postinst"], scripts["prerm"] = control+"/preinst", control+"/postinst", control+"/prerm"
	})
	t.Run("apk", func(t *testing.T) {
		root := filepath.Join(dir, "apk")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		command(t, "tar", "--warning=no-unknown-keyword", "-C", root, "-xzf", apk)
		checkRouter(t, command(t, "tar", "--warning=no-unknown-keyword", "-tvzf", apk))
		fields, err := os.ReadFile(root + "/.PKGINFO")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"pkgname = ctlogd\n", "pkgver = 1.0.0_p4-r1\n", "arch = noarch\n",
			"depend = kmod-nf-conntrack-netlink\n"} {
			if !strings.Contains(string(fields), want) {
				t.Errorf(".PKGINFO has no %q:\n%s", want, fields)
			}
		}
		for of, name := range map[string]string{"preinst": ".pre-install", "postinst": ".post-install", "prerm": ".pre-deinstall"} {
			a, errA := os.ReadFile(scripts[of])
			b, errB := os.ReadFile(filepath.Join(root, name))
			if errA != nil || errB != nil || !bytes.Equal(a, b) {
				t.Errorf("%s is not the %s of the ipk (%v, %v)", name, of, errA, errB)
			}
		}
		scripts["pre-upgrade"], scripts["post-upgrade"] = root+"/.pre-upgrade", root+"/.post-upgrade"
	})
	if t.Failed() {
		return
	}
	scripts["init"] = root + "/etc/init.d/ctlogd"

	t.Run("shell", func(t *testing.T) {
		for _, file := range scripts {
			command(t, "busybox", "ash", "-n", file)
			command(t, "shellcheck", "--shell=dash", "--exclude=SC1091", file) // not there: /etc/openwrt_release
		}
	})

	t.Run("processor", func(t *testing.T) {
		image := t.TempDir()
		if err := os.Mkdir(image+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("IPKG_INSTROOT", image)
		for of, want := range map[string]bool{arch: true, arch + "_cortex-a53": true, "mips64_octeonplus": false, "riscv64": false, "i386_pentium4": false} {
			if err := os.WriteFile(image+"/etc/openwrt_release", []byte("DISTRIB_ID='OpenWrt'\nDISTRIB_ARCH='"+of+"'\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("busybox", "ash", scripts["preinst"], "install").CombinedOutput()
			if (err == nil) != want || !want && !strings.Contains(string(out), "this package is for "+arch+", and this is "+of+"\n") {
				t.Errorf("on %s: %v, %s", of, err, out)
			}
		}
	})

	// The configuration with what is commented out in it.
	t.Run("examples", func(t *testing.T) {
		text, err := os.ReadFile(root + "/etc/ctlogd/ctlogd.yaml")
		if err != nil {
			t.Fatal(err)
		}
		all := regexp.MustCompile(`(?m)^#(  .*|$)`).ReplaceAll(text, []byte("$1"))
		if n := bytes.Count(all, []byte("address:")); n != 2 || bytes.Contains(all, []byte("#  ")) {
			t.Fatalf("%d addresses in:\n%s", n, all)
		}
		file := filepath.Join(t.TempDir(), "ctlogd.yaml")
		if err := os.WriteFile(file, all, 0o644); err != nil {
			t.Fatal(err)
		}
		command(t, root+"/usr/bin/ctlogd", "check", "--config-only", "-c", file)
	})

	// Neither output nor block of the configuration that the small build has not is just an unknown key.
	t.Run("left out", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "ctlogd.yaml")
		err := os.WriteFile(file, []byte("outputs:\n  jsonl: [{path: /tmp/a.jsonl}]\n  kafka: [{brokers: [k:9092], topic: flows}]\n"+
			"  archive: [{path: /tmp/archive}]\nmetrics: {listen: \"127.0.0.1:9469\"}\nwhois: {}\n"), 0o644)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(root+"/usr/bin/ctlogd", "check", "--config-only", "-c", file).CombinedOutput()
		for _, key := range []string{"3: outputs.kafka", "4: outputs.archive", "5: metrics", "6: whois"} {
			want := file + ":" + key + ": this ctlogd is a small one, built for routers without it; take the key out"
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%v, no %q in:\n%s", err, want, out)
			}
		}
		out, _ = exec.Command(root+"/usr/bin/ctlogd", "whois", "203.0.113.5").CombinedOutput()
		if want := `unknown command "whois"`; !strings.Contains(string(out), want) {
			t.Errorf("no %q in %s", want, out)
		}
		if out := command(t, root+"/usr/bin/ctlogd", "version"); !strings.HasPrefix(out, "ctlogd 1.0.0+4.9a9dc29, commit 9a9dc29, ") {
			t.Errorf("the binary is %s", out)
		}
	})

	// The init script where procd prints what it is told, with the programs of busybox: on a copy of this machine's files, with
	// those of the package, and with empty /tmp and /var.
	t.Run("init", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root, for a mount namespace")
		}
		out := command(t, "unshare", "--mount", "sh", "-ec", `
			mount -t tmpfs tmpfs "$2"; mkdir "$2/upper" "$2/work" "$2/root"; root=$2/root
			mount -t overlay overlay -o "lowerdir=/,upperdir=$2/upper,workdir=$2/work" "$root"
			tar -C "$1" -cf - . | tar -C "$root" --keep-directory-symlink -xf -
			for d in tmp var; do mount -t tmpfs tmpfs "$root/$d"; done
			mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"
			rm -f "$root/etc/machine-id"
			mkdir "$root/busybox"; busybox --install -s "$root/busybox"
			cat >"$root/etc/rc.common" <<-'END'
				procd_open_instance() { echo open; }
				procd_set_param() { echo "set $*"; }
				procd_close_instance() { echo close; }
				procd_send_signal() { echo "signal $*"; }
				initscript=$1 action=$2
				. "$initscript"
				case $action in
				start) start_service ;;
				reload) reload_service ;;
				esac
			END
			chmod +x "$root/etc/rc.common"
			rc() { chroot "$root" env PATH=/busybox sh /etc/rc.common /etc/init.d/ctlogd "$1" 2>&1 || echo "failed: $?"; }
			for a in start reload; do echo "- $a"; rc $a; done
			sed -n 's/^[0-9a-f]\{32\}$/an id/p' "$root/etc/machine-id"
			chroot "$root" stat -c '%a %n' /var/run/ctlogd /var/lib/ctlogd /tmp/ctlogd
			cp "$root/etc/machine-id" "$root/etc/first-id"
			echo "nonsense: 1" >>"$root/etc/ctlogd/ctlogd.yaml"
			for a in start reload; do echo "- mistaken $a"; rc $a; done
			cmp "$root/etc/machine-id" "$root/etc/first-id"
		`, "sh", root, t.TempDir())
		want := `- start
open
set command /usr/bin/ctlogd run -c /etc/ctlogd/ctlogd.yaml
set env STATE_DIRECTORY=/var/lib/ctlogd RUNTIME_DIRECTORY=/var/run/ctlogd GOGC=50 GOMEMLIMIT=10MiB
set respawn 3600 5 0
set stderr 1
set term_timeout 30
close
- reload
signal ctlogd * HUP
an id
750 /var/run/ctlogd
750 /var/lib/ctlogd
750 /tmp/ctlogd
`
		if got, mistaken, _ := strings.Cut(out, "- mistaken start\n"); got != want {
			t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
		} else if start, reload, _ := strings.Cut(mistaken, "- mistaken reload\n"); strings.Contains(start, "open") ||
			!strings.Contains(start, "nonsense: unknown key") || !strings.Contains(start, "failed: 1\n") ||
			!strings.HasPrefix(reload, "signal ctlogd * HUP\n") || !strings.Contains(reload, "nonsense: unknown key") ||
			!strings.Contains(reload, "failed: 1\n") {
			t.Errorf("with a mistake in the configuration:\n%s", mistaken)
		}
	})
}

// checkRouter compares what tar lists with what there should be, directories of others and what describes the package left out.
func checkRouter(t *testing.T, list string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		path := strings.TrimSuffix(strings.TrimPrefix(f[5], "./"), "/")
		if !strings.HasPrefix(path, ".") && (f[0][0] != 'd' || path == "etc/ctlogd") {
			got = append(got, f[0]+" "+f[1]+" "+path)
		}
	}
	slices.Sort(got)
	want := strings.Split(strings.TrimSpace(routerContents), "\n")
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
}

// TestOpenWrtProcessors runs the binaries of packages for other processors, the big-endian one among them, where there is no
// conntrack: they check the package's configuration, and print of IPFIX the same as the binary for this machine.
func TestOpenWrtProcessors(t *testing.T) {
	if os.Getenv("CTLOGD_LONG") == "" {
		t.Skip("compiles everything for two more processors: CTLOGD_LONG=1")
	}
	own := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	for _, c := range []string{"qemu-mips", "qemu-arm"} {
		if _, err := exec.LookPath(c); err != nil || own == "" {
			t.Skipf("needs the command %s, and a processor that they are not for (make test installs it on Debian, as root)", c)
		}
	}
	t.Chdir("../..")
	dir := t.TempDir()
	if err := run(dir, "v1.0.0", "9a9dc29", []string{own, "mips", "arm"}, []string{"ipk"}); err != nil {
		t.Fatal(err)
	}
	// Goldens of the encoder, as collectors would get them.
	goldens, err := filepath.Glob("output/ipfix/testdata/*.hex")
	if err != nil || len(goldens) < 10 {
		t.Fatalf("%d goldens, %v", len(goldens), err)
	}
	var messages []byte
	for _, path := range goldens {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(regexp.MustCompile(`(?m)#.*$`).ReplaceAllString(string(text), "")), ""))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		messages = append(messages, b...)
	}
	file := filepath.Join(dir, "messages")
	if err := os.WriteFile(file, messages, 0o644); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, c := range []struct{ arch, qemu string }{{own, ""}, {"mips", "qemu-mips"}, {"arm", "qemu-arm"}} {
		root := filepath.Join(dir, c.arch)
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		command(t, "sh", "-ec", `tar -xzOf "$1" ./data.tar.gz | tar -C "$2" -xzf -`, "sh", filepath.Join(dir, "ctlogd_1.0.0_"+c.arch+".ipk"), root)
		ctlogd := func(args ...string) string {
			t.Helper()
			args = append([]string{root + "/usr/bin/ctlogd"}, args...)
			if c.qemu != "" {
				args = append([]string{c.qemu}, args...)
			}
			return command(t, args[0], args[1:]...)
		}
		if out := ctlogd("version"); !strings.HasPrefix(out, "ctlogd 1.0.0, commit 9a9dc29, ") {
			t.Errorf("%s: %s", c.arch, out)
		}
		if out := ctlogd("check", "--config-only", "-c", root+"/etc/ctlogd/ctlogd.yaml"); !strings.HasPrefix(out, "pass  configuration") {
			t.Errorf("%s: %s", c.arch, out)
		}
		got := []string{ctlogd("ipfix", "templates"), ctlogd("ipfix", "listen", file)}
		if want == nil {
			want = got
			if n := strings.Count(want[1], "\n"); n < 10 {
				t.Fatalf("%d lines of IPFIX:\n%s", n, want[1])
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-%s +%s):\n%s", c.arch, own, c.arch, diff)
		}
	}
}
