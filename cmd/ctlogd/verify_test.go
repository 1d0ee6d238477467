//go:build !small

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/ownlog"
)

// makeArchive makes an archive of one host with one segment and an unsealed row log. It returns what ctlogd's log has said.
func makeArchive(t *testing.T, dir, host, key, format string) (log string) {
	t.Helper()
	var out bytes.Buffer
	zlog, own := ownlog.New(ownlog.Config{Level: "info", Format: format}, &out)
	w, err := archive.Open(archive.Options{Dir: dir, Host: host, Observer: "obs", Interval: time.Hour, Records: 20, Key: key,
		Seal: sealHere,
		Log:  func(_ archive.Level, msg, file string, _ error, _ string) { zlog.Info(msg, zap.String("file", file)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	tr, b := trace.New(trace.Default()), flow.NewBatch(30, nil)
	for range 30 {
		r := b.Next()
		tr.Next(r)
		if _, err := w.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	closeArchive(t, w, func() bool { return w.Stats.Seals.Load() > 0 && w.Stats.Checkpointed.Load() > 0 })
	own.Close()
	return out.String()
}

// TestVerify: the exit status says how an archive fares, and the text why. All is done with copies, the public key and the
// log that another machine has.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	archives, key := filepath.Join(dir, "archive"), filepath.Join(dir, "archive.key")
	public, err := archive.CreateKey(key, "gw1")
	if err != nil {
		t.Fatal(err)
	}
	pub, logs := filepath.Join(dir, "gw1.pub"), map[string]string{}
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("gw1.pub", public+"\n")
	logs["gw1"] = write("gw1.log", makeArchive(t, archives, "gw1", key, "console"))
	logs["gw2"] = write("gw2.log", makeArchive(t, archives, "gw2", key, "json"))
	_, other, err := archive.NewKey("gw1")
	if err != nil {
		t.Fatal(err)
	}
	write("other.pub", other)
	cut := filepath.Join(dir, "cut")
	if err := os.CopyFS(cut, os.DirFS(archives)); err != nil {
		t.Fatal(err)
	}
	if segments, _ := filepath.Glob(cut + "/host=gw2/date=*/*.parquet"); len(segments) != 1 || os.Remove(segments[0]) != nil {
		t.Fatal(segments)
	}
	without := filepath.Join(dir, "without")
	if err := os.CopyFS(filepath.Join(without, "host=gw1"), os.DirFS(filepath.Join(archives, "host=gw1"))); err != nil {
		t.Fatal(err)
	}
	unsigned := filepath.Join(dir, "unsigned")
	makeArchive(t, unsigned, "gw3", "", "json")
	for _, tt := range []struct {
		name string
		args []string
		code int
		want []string // in the output
	}{
		{"whole", []string{archives}, verifyWhole, []string{"gw1: sealed and whole, but for what is not sealed yet", "gw2: sealed and whole",
			"1 segments are whole, with 20 records", "not sealed, and so not verified: 10 records since", "which is what it says itself",
			"could have made all of this anew"}},
		{"with the key and the logs of both", []string{archives, "--key", pub, "--checkpoint", logs["gw1"], "--checkpoint", logs["gw2"]}, verifyWhole,
			[]string{"newest checkpoint witnessed elsewhere: of ", "signed by " + public}},
		{"of one host", []string{filepath.Join(archives, "host=gw1"), "--key", pub, "--checkpoint", logs["gw1"]}, verifyWhole, []string{"gw1: sealed and whole"}},
		{"a segment is missing", []string{cut}, verifyTampered, []string{"gw1: sealed and whole", "gw2: missing", "no tombstone says why"}},
		{"a host is missing", []string{without, "--checkpoint", logs["gw1"], "--checkpoint", logs["gw2"]}, verifyTampered,
			[]string{"gw1: sealed and whole", "gw2: missing", "the host's folder is missing"}},
		{"no checkpoint of the host", []string{filepath.Join(archives, "host=gw1"), "--checkpoint", logs["gw2"]}, verifyUnproven,
			[]string{"no checkpoint that was given is of the host gw1"}},
		{"another key", []string{without, "--key", filepath.Join(dir, "other.pub")}, verifyTampered, []string{"gw1: forged"}},
		{"no key, no signature", []string{unsigned}, verifyWhole, []string{"gw3: sealed and whole", "; not signed"}},
		{"a key, and no signature", []string{unsigned, "--key", pub}, verifyUnproven, []string{"gw3: unproven", "  unproven: there is no checkpoint that a given key has signed"}},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(append([]string{"verify"}, tt.args...), &stdout, &stderr); code != tt.code || stderr.Len() > 0 {
			t.Errorf("%s: exit status %d, want %d: %s%s", tt.name, code, tt.code, stderr.String(), stdout.String())
		}
		for _, want := range tt.want {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: no %q in\n%s", tt.name, want, stdout.String())
			}
		}
		stdout.Reset()
		if code := run(append([]string{"verify", "--json"}, tt.args...), &stdout, &stderr); code != tt.code {
			t.Errorf("%s: exit status %d with --json", tt.name, code)
		}
		var all []archive.Verification
		if err := json.Unmarshal(stdout.Bytes(), &all); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.code == verifyTampered != slices.ContainsFunc(all, func(v archive.Verification) bool { return tampered(v.Verdict) }) {
			t.Errorf("%s: %s", tt.name, stdout.String())
		}
	}
	for name, tt := range map[string]struct{ args, want string }{
		"no folder":              {dir + "/none", "there is no archive " + dir + "/none"},
		"no archive":             {dir + "/without/host=gw1/..", ""},
		"a folder without hosts": {t.TempDir(), "is no archive"},
		"no key file":            {archives + " --key " + dir + "/none", "no such file or directory"},
		"the private key":        {archives + " --key " + key, "ctlogd key show"},
		"a key that is none":     {archives + " --key " + logs["gw1"], "is no public key"},
		"a file without any":     {archives + " --checkpoint " + pub, "has no checkpoint"},
		"no archive is set":      {"", "which archive? name its folder"},
	} {
		if tt.want == "" {
			continue
		}
		var stdout, stderr bytes.Buffer
		if code := run(append([]string{"verify"}, strings.Fields(tt.args)...), &stdout, &stderr); code != exitFailure || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%s: exit status %d: %s", name, code, stderr.String())
		}
	}
}
