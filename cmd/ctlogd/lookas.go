package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/preflight"
)

// What root may read and write says nothing about the service. So a check by root looks at the configuration, the files
// and the outputs in a child process with the rights of the service's user. The child gets the configuration's text on
// its standard input, since a draft may be readable for root alone, and prints an asUserResults.

// asUserResults is what the child has found.
type asUserResults struct {
	Configuration, Outputs []preflight.Result
}

// account is whose rights a check looks with.
type account struct {
	name     string // of the user
	why      string // who says that it is this one
	uid, gid uint32
	groups   []uint32
}

// errNotRoot says that a check cannot become somebody else.
var errNotRoot = errors.New("only root can look with the rights of another user")

// chooseAccount returns with whose rights the check is to look, nil for its own. name is that of --user; without it, it
// is the user that the unit names, as far as root asks.
func chooseAccount(name string) (*account, error) {
	root := os.Geteuid() == 0
	unit, file := findUnit(hostRoot)
	switch {
	case name != "":
		if u, err := user.Current(); err == nil && u.Username == name {
			return nil, nil
		} else if !root {
			return nil, fmt.Errorf("--user %s: %w", name, errNotRoot)
		}
		if unit.user != name {
			unit = unitUser{user: name}
		}
		return unit.account("--user")
	case !root || unit.user == "" || unit.user == "root":
		return nil, nil
	}
	return unit.account(file)
}

// unitUser is as whom a unit runs its service.
type unitUser struct {
	user, group string
	groups      []string
}

// account looks up the numbers of the user and the groups.
func (u unitUser) account(why string) (*account, error) {
	found, err := user.Lookup(u.user)
	if err != nil {
		return nil, fmt.Errorf("%s names the user %s: %w", why, u.user, err)
	}
	a := &account{name: u.user, why: why}
	number := func(s string) uint32 {
		n, _ := strconv.ParseUint(s, 10, 32)
		return uint32(n)
	}
	a.uid, a.gid = number(found.Uid), number(found.Gid)
	if ids, err := found.GroupIds(); err == nil {
		for _, id := range ids {
			a.groups = append(a.groups, number(id))
		}
	}
	for _, name := range append([]string{u.group}, u.groups...) {
		if name == "" {
			continue
		}
		g, err := user.LookupGroup(name)
		if err != nil {
			return nil, fmt.Errorf("%s names the group %s: %w", why, name, err)
		}
		if name == u.group {
			a.gid = number(g.Gid)
		}
		a.groups = append(a.groups, number(g.Gid))
	}
	return a, nil
}

const unitName = "ctlogd.service"

// hostRoot is where the unit and its configuration are looked for; tests have one of their own.
var hostRoot = "/"

// unitDirs are where systemd looks for units, the first that has one deciding (systemd.unit(5)).
var unitDirs = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system",
	"lib/systemd/system"}

// findUnit reads as whom the unit runs, with its drop-ins, and returns the unit's file, "" if there is none. It reads
// files and does not ask the manager, which need not run where a box is prepared.
func findUnit(root string) (u unitUser, file string) {
	for _, dir := range unitDirs {
		path := filepath.Join(root, dir, unitName)
		if text, err := os.ReadFile(path); err == nil {
			u.read(string(text))
			file = path
			break
		}
	}
	if file == "" {
		return u, ""
	}
	dropIns := map[string]string{} // by name; one in an earlier directory hides those of its name in later ones
	for _, dir := range slices.Backward(unitDirs) {
		paths, _ := filepath.Glob(filepath.Join(root, dir, unitName+".d", "*.conf"))
		for _, path := range paths {
			dropIns[filepath.Base(path)] = path
		}
	}
	var names []string
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if text, err := os.ReadFile(dropIns[name]); err == nil {
			u.read(string(text))
		}
	}
	return u, file
}

// read takes what a unit's file or a drop-in says.
func (u *unitUser) read(text string) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "User":
			u.user = value
		case "Group":
			u.group = value
		case "SupplementaryGroups":
			if value == "" { // it begins the list anew
				u.groups = nil
			}
			u.groups = append(u.groups, strings.Fields(value)...)
		}
	}
}

// lookAs has a child look with the account's rights. text is the configuration, from file.
func (a *account) lookAs(ctx context.Context, file string, text []byte, configOnly bool) (r asUserResults, err error) {
	args := []string{"check", "--as-user"}
	if file != "" {
		args = append(args, "-c", file)
	}
	if configOnly {
		args = append(args, "--config-only")
	}
	// With CAP_NET_ADMIN, as the unit gives it; a container may not have it.
	for _, caps := range [][]uintptr{{unix.CAP_NET_ADMIN}, nil} {
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &stdout, &stderr
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: caps,
			Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}}
		if err = cmd.Run(); errors.Is(err, syscall.EPERM) && caps != nil {
			continue
		}
		if err != nil {
			return r, fmt.Errorf("look as %s: %w %s", a.name, err, strings.TrimSpace(stderr.String()))
		}
		if err = json.Unmarshal(stdout.Bytes(), &r); err != nil {
			return r, fmt.Errorf("look as %s: %w", a.name, err)
		}
		break
	}
	return r, err
}

// lookedAs says with whose rights the check has looked.
func lookedAs(a *account, err error) preflight.Result {
	r := preflight.Result{Name: "user", Status: preflight.Pass}
	name := fmt.Sprint("uid ", os.Geteuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	switch unit, file := findUnit(hostRoot); {
	case err != nil:
		r.Status = preflight.Warn
		r.Detail = fmt.Sprintf("looked with the rights of %s, which may not be the service's: %v", name, err)
	case a != nil:
		r.Detail = fmt.Sprintf("looked at configuration, files and outputs as %s (%s)", a.name, a.why)
	case unit.user != "" && unit.user != name:
		r.Detail = fmt.Sprintf("looked as %s; %s runs as %s, as whom ctlogd check looks for root", name, file, unit.user)
	default:
		r.Detail = "looked as " + name
		if os.Geteuid() == 0 {
			r.Detail += ", who may read and write everything; ctlogd check --user NAME looks as somebody else"
		}
	}
	return r
}
