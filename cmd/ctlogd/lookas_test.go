package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/preflight"
)

// write makes a file with its directories.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestFindUnit(t *testing.T) {
	root := t.TempDir()
	if u, file := findUnit(root); file != "" || u.user != "" {
		t.Errorf("no unit: %+v, %q", u, file)
	}
	packaged, err := os.ReadFile("../../packaging/systemd/ctlogd.service")
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+"/usr/lib/systemd/system/ctlogd.service", string(packaged), 0o644)
	opts := cmp.AllowUnexported(unitUser{})
	u, file := findUnit(root)
	if diff := cmp.Diff(unitUser{"ctlogd", "ctlogd-readers", []string{"ctlogd"}}, u, opts); diff != "" || file != root+"/usr/lib/systemd/system/ctlogd.service" {
		t.Errorf("the packaged one, %s (-want +got):\n%s", file, diff)
	}
	write(t, root+"/usr/lib/systemd/system/ctlogd.service.d/20-user.conf", "[Service]\nUser=other\n", 0o644)
	write(t, root+"/etc/systemd/system/ctlogd.service.d/30-groups.conf", "[Service]\nSupplementaryGroups=\nSupplementaryGroups=a b\n", 0o644)
	u, _ = findUnit(root)
	if diff := cmp.Diff(unitUser{"other", "ctlogd-readers", []string{"a", "b"}}, u, opts); diff != "" {
		t.Errorf("with drop-ins (-want +got):\n%s", diff)
	}
	write(t, root+"/etc/systemd/system/ctlogd.service.d/20-user.conf", "[Service]\nUser=third\n", 0o644)
	if u, _ = findUnit(root); u.user != "third" {
		t.Errorf("a drop-in of the same name in /etc does not hide the other: %+v", u)
	}
	write(t, root+"/etc/systemd/system/ctlogd.service", "[Service]\nUser=fourth\n", 0o644)
	os.RemoveAll(root + "/etc/systemd/system/ctlogd.service.d")
	os.RemoveAll(root + "/usr/lib/systemd/system/ctlogd.service.d")
	if u, _ = findUnit(root); u.user != "fourth" || u.group != "" {
		t.Errorf("a unit in /etc does not hide the packaged one: %+v", u)
	}
}

// A check by root sees what the service's user would see, and says so.
func TestCheckAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it looks with the rights of another user")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("", "ctlogd-check-") // t.TempDir is in a directory that is root's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	for _, dir := range []string{root, root + "/mine", root + "/roots"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(root+"/mine", uid, -1); err != nil {
		t.Fatal(err)
	}
	config := root + "/etc/ctlogd/ctlogd.yaml"
	write(t, config, "outputs: {jsonl: [{path: "+root+"/mine/flows}, {path: "+root+"/roots/flows}]}\n", 0o600)
	write(t, root+"/draft.yaml", "outputs: {jsonl: [{path: "+root+"/mine/flows}]}\n", 0o600) // readable for root alone

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	check := func(args ...string) map[string]preflight.Result {
		t.Helper()
		cmd := exec.Command(self, append([]string{"check", "--json"}, args...)...)
		cmd.Env = append(os.Environ(), withRoot+"="+root)
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && (!asExit(err, &exit) || exit.ExitCode() != exitFailure) {
			t.Fatalf("%v: %v", args, err)
		}
		var list []preflight.Result
		if err := json.Unmarshal(out, &list); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		all := map[string]preflight.Result{}
		for _, r := range list {
			if r.Name == "configuration" && all[r.Name].Status == preflight.Fail {
				continue
			}
			all[r.Name] = r
		}
		if all["ctnetlink"].Name == "" {
			t.Errorf("%v: the host was not checked", args)
		}
		return all
	}
	const first, second = "outputs.jsonl[0]", "outputs.jsonl[1]"

	all := check() // no unit: as root, who may do everything
	if all[first].Status != preflight.Pass || all[second].Status != preflight.Pass || all["configuration"].Detail != config {
		t.Errorf("as root: %+v", all)
	}
	if got, want := all["user"].Detail, "looked as root, who may read and write everything; ctlogd check --user NAME looks as somebody else"; got != want {
		t.Errorf("as root: %q, want %q", got, want)
	}
	all = check("--user", "nobody")
	if all[first].Status != preflight.Pass || all[second].Status != preflight.Fail {
		t.Errorf("as nobody: %+v", all)
	}
	if r := all["configuration"]; r.Status != preflight.Fail || r.Detail != "open "+config+": permission denied" {
		t.Errorf("nobody may not read the configuration: %+v", r)
	}
	if got, want := all["user"].Detail, "looked at configuration, files and outputs as nobody (--user)"; got != want {
		t.Errorf("as nobody: %q, want %q", got, want)
	}
	unit := root + "/usr/lib/systemd/system/ctlogd.service"
	write(t, unit, "[Service]\nUser=nobody\n", 0o644)
	all = check("-c", root+"/draft.yaml")
	if all[first].Status != preflight.Pass || all["configuration"].Status != preflight.Pass {
		t.Errorf("a draft, as the unit's user: %+v", all)
	}
	if got, want := all["user"].Detail, "looked at configuration, files and outputs as nobody ("+unit+")"; got != want {
		t.Errorf("as the unit's user: %q, want %q", got, want)
	}
	if all = check(); all[second].Status != preflight.Fail {
		t.Errorf("without -c, as the unit's user: %+v", all)
	}
	write(t, unit, "[Service]\nUser=nobody-of-that-name\n", 0o644)
	all = check()
	if r := all["user"]; r.Status != preflight.Warn || !strings.Contains(r.Detail, "nobody-of-that-name") {
		t.Errorf("a user whom there is not: %+v", r)
	}
}

func asExit(err error, exit **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*exit = e
	return ok
}
