//go:build integration

// Package container has no code: these tests run what is in this folder.
package container

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/integration/engines"
)

// lint runs one of the linters on a file of this folder.
func lint(t *testing.T, args ...string) {
	t.Helper()
	dir, err := engines.Lint()
	if err != nil {
		t.Skipf("the linters cannot be had: %v", err)
	}
	cmd := exec.Command(filepath.Join(dir, "bin", args[0]), args[1:]...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestLint(t *testing.T) {
	lint(t, "hadolint", "Containerfile")
	lint(t, "kubernetes-validate", "--strict", "daemonset.yaml")
}

// daemonSet is what of daemonset.yaml the tests act on.
type daemonSet struct {
	Kind string
	Data map[string]string
	Spec struct {
		Template struct {
			Spec struct {
				HostNetwork bool `yaml:"hostNetwork"`
				Containers  []struct {
					Args            []string
					SecurityContext struct {
						RunAsUser    int  `yaml:"runAsUser"`
						Escalation   bool `yaml:"allowPrivilegeEscalation"`
						ReadOnlyRoot bool `yaml:"readOnlyRootFilesystem"`
						Capabilities struct{ Drop, Add []string }
					} `yaml:"securityContext"`
					LivenessProbe  probe `yaml:"livenessProbe"`
					ReadinessProbe probe `yaml:"readinessProbe"`
					VolumeMounts   []struct {
						MountPath string `yaml:"mountPath"`
					} `yaml:"volumeMounts"`
				}
			}
		}
	}
}

type probe struct {
	HTTPGet struct {
		Host, Path string
		Port       int
	} `yaml:"httpGet"`
}

func (p probe) url() string {
	return fmt.Sprintf("http://%s:%d%s", p.HTTPGet.Host, p.HTTPGet.Port, p.HTTPGet.Path)
}

// read returns the DaemonSet, and the configuration of the ConfigMap.
func read(t *testing.T) (set daemonSet, config string) {
	t.Helper()
	text, err := os.ReadFile("daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var one daemonSet
		if d.Decode(&one) != nil {
			break
		}
		switch one.Kind {
		case "ConfigMap":
			config = one.Data["ctlogd.yaml"]
		case "DaemonSet":
			set = one
		}
	}
	if config == "" || len(set.Spec.Template.Spec.Containers) != 1 {
		t.Fatal("daemonset.yaml has not one container and a configuration")
	}
	return set, config
}

// The image is built by the recipe and run twice: as its own user, with the file's capability; and as the DaemonSet has it. No
// container runtime runs within what tests are run in, so the kernel is told by setpriv and chroot what a runtime would tell
// it: user, bounding set, no_new_privs, and a root that is read-only but for the volumes.
func TestImage(t *testing.T) {
	for _, c := range []string{"buildah", "setpriv", "setcap", "ip", "conntrack", "curl"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs the command %s (make test installs it on Debian, as root)", c)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts and network namespaces")
	}
	set, config := read(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "ctlogd"), "../../cmd/ctlogd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	recipe, err := os.ReadFile("Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Containerfile"), recipe, 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "setcap", "cap_net_admin=ep", filepath.Join(dir, "ctlogd"))
	store := []string{"--root", filepath.Join(dir, "store"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
	buildah := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("buildah", append(store, args...)...).Output()
		if err != nil {
			t.Fatalf("buildah %s: %v", args[0], err)
		}
		return strings.TrimSpace(string(out))
	}
	buildah("build", "--isolation", "chroot", "-q", "-t", "ctlogd", dir)
	for field, want := range map[string]string{"User": "65532:65532", "Entrypoint": "[/usr/bin/ctlogd]", "Cmd": "[run -c /etc/ctlogd/ctlogd.yaml]"} {
		if got := buildah("inspect", "--type", "image", "--format", "{{.OCIv1.Config."+field+"}}", "localhost/ctlogd"); got != want {
			t.Errorf("the image's %s is %s, want %s", field, got, want)
		}
	}

	c := set.Spec.Template.Spec.Containers[0]
	s := c.SecurityContext
	if s.RunAsUser != 0 || s.Escalation || !s.ReadOnlyRoot || fmt.Sprint(s.Capabilities) != "{[ALL] [NET_ADMIN]}" || !set.Spec.Template.Spec.HostNetwork {
		t.Fatalf("the DaemonSet is not what is run here: %+v", s)
	}
	for name, how := range map[string]struct {
		user   string
		become []string // with the capability that chroot takes
	}{
		"own user":  {"65532:65532", []string{"chroot", "--userspec=65532:65532"}},
		"DaemonSet": {"0:0", []string{"setpriv", "--no-new-privs", "--bounding-set", "-all,+net_admin,+sys_chroot", "--inh-caps", "-all", "chroot"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := buildah("mount", buildah("from", "--pull-never", "localhost/ctlogd"))
			ns := "ctlogd-image-" + strings.ReplaceAll(name, " ", "")
			command(t, "ip", "netns", "add", ns)
			t.Cleanup(func() { command(t, "ip", "netns", "del", ns) })
			command(t, "ip", "netns", "exec", ns, "sh", "-c", `ip link set lo up
				for s in acct timestamp events; do echo 1 >/proc/sys/net/netfilter/nf_conntrack_$s; done`)
			for _, m := range c.VolumeMounts {
				if err := os.MkdirAll(filepath.Join(root, filepath.Dir(m.MountPath)), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			mounts := `mount --bind "$root" "$root"`
			for _, m := range c.VolumeMounts {
				switch m.MountPath {
				case "/etc/machine-id":
				case "/etc/ctlogd":
					if err := os.MkdirAll(root+m.MountPath, 0o755); err != nil {
						t.Fatal(err)
					}
				default:
					mounts += fmt.Sprintf(`; mkdir -p "$root%s"; mount -t tmpfs tmpfs "$root%s"; chown "$user" "$root%[1]s"`, m.MountPath, m.MountPath)
				}
			}
			if err := os.WriteFile(root+"/etc/ctlogd/ctlogd.yaml", []byte(config+"state_directory: /var/lib/ctlogd\nlive: {socket: /run/ctlogd/ctlogd.sock}\n"+
				"log: {level: debug}\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root+"/etc/machine-id", []byte("00112233445566778899aabbccddeeff\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"netns", "exec", ns, "unshare", "--mount", "sh", "-ec",
				`root=$1 user=$2; shift 2; ` + mounts + `; mount -o remount,bind,ro "$root"; exec "$@"`, "sh", root, how.user}, how.become...)
			args = append(args, root, "/usr/bin/ctlogd")
			cmd := exec.Command("ip", append(args, c.Args...)...)
			var log bytes.Buffer
			cmd.Stdout, cmd.Stderr = &log, &log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			stop := func() (err error) {
				_ = cmd.Process.Signal(os.Interrupt)
				select {
				case err = <-ended:
				case <-time.After(time.Minute):
					_ = cmd.Process.Kill()
					err = <-ended
				}
				ended <- err
				return err
			}
			defer func() { _ = stop() }()
			// in runs a command in the namespaces of the process.
			in := func(args ...string) (string, error) {
				out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(cmd.Process.Pid), "-n", "-m"}, args...)...).CombinedOutput()
				return string(out), err
			}
			until := func(what string, holds func() bool) {
				t.Helper()
				for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
					if len(ended) > 0 || time.Now().After(deadline) {
						_ = stop()
						t.Fatalf("%s does not come about:\n%s", what, log.String())
					}
				}
			}
			for _, p := range []probe{c.LivenessProbe, c.ReadinessProbe} {
				until(p.url(), func() bool { _, err := in("curl", "-sf", "--noproxy", "*", p.url()); return err == nil })
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			if want := "CapEff:\t0000000000001000\n"; !strings.Contains(string(status), want) { // CAP_NET_ADMIN
				t.Errorf("no %q in:\n%s", want, status)
			}
			command(t, "ip", "netns", "exec", ns, "conntrack", "-I", "-p", "udp", "-s", "192.0.2.1", "-d", "198.51.100.2", "--sport", "4000", "--dport", "53", "-t", "60")
			command(t, "ip", "netns", "exec", ns, "conntrack", "-D", "-s", "192.0.2.1")
			until("the record", func() bool {
				out, _ := in("cat", root+"/var/log/ctlogd/flows.jsonl")
				return strings.Contains(out, `"src_ip":"192.0.2.1"`)
			})
			if err := stop(); err != nil {
				t.Errorf("it ended with %v:\n%s", err, log.String())
			}
		})
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
