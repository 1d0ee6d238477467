//go:build !small

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/printable"
)

// Exit statuses of verify, besides those of all commands.
const (
	verifyWhole      = 0
	verifyTampered   = 3
	verifyUnproven   = 4
	verifyUnreadable = 5
)

type verifyOptions struct {
	dirs        []string
	keys        []string // files
	checkpoints []string // files
	sealed      bool
	json        bool
}

func newVerify(stdout, stderr io.Writer) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [DIR...]",
		Short: "Say whether an archive is whole, or what was done to it",
		Long: `Say whether an archive is whole: whether each file has the bytes that the catalog says, whether the catalog's lines are one
chain, and whether both are what checkpoints have seen. DIR is an archive, the folder host=... of one host, or a copy of either;
without it, the archives of the service's configuration are meant. It needs no daemon, and no private key.

A checkpoint that has never left the machine proves little: who is root there could have made all of it anew. Give one that was
kept elsewhere, such as what the journal's host has of ctlogd's log, with --checkpoint, and the public key with --key.

The exit status is that of the worst archive:

    0  whole, but for what retention has removed
    3  not whole: the verdict says what was done to it
    4  whole, and no checkpoint that was given proves it
    5  not all of it could be read
    1  no such archive, key or checkpoint`,
		Example: "  ctlogd verify\n  ctlogd verify /mnt/copy --key gw1.pub --checkpoint journal-of-gw1.txt",
		RunE: func(cmd *cobra.Command, dirs []string) error {
			o.dirs = dirs
			code, err := runVerify(cmd.Context(), o, stdout, stderr)
			if err != nil {
				return &failure{err}
			}
			if code != verifyWhole {
				return exitCode(code)
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&o.keys, "key", nil, "`FILE` with public keys, a line each; may be given again")
	cmd.Flags().StringArrayVar(&o.checkpoints, "checkpoint", nil, "`FILE` with checkpoints that were kept elsewhere: a note, several, or a log of ctlogd; may be given again")
	cmd.Flags().BoolVar(&o.sealed, "sealed", false, "look at what is sealed alone: for a copy that was made without row logs")
	cmd.Flags().BoolVar(&o.json, "json", false, "print the results as a JSON array, one for each host")
	return cmd
}

// configuredArchives returns the archives of the service's configuration.
func configuredArchives(ctx context.Context) (dirs []string, err error) {
	file := theService()
	text, err := readConfig(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("which archive? name its folder; %v", err)
	}
	cfg, err := validConfig(ctx, file, text)
	if err != nil {
		return nil, fmt.Errorf("which archive? name its folder; %v", err)
	}
	for _, a := range cfg.Outputs.Archive {
		dirs = append(dirs, a.Path)
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("which archive? name its folder; %s has no output archive", file)
	}
	return dirs, nil
}

func runVerify(ctx context.Context, o verifyOptions, stdout, stderr io.Writer) (code int, err error) {
	if len(o.dirs) == 0 {
		if o.dirs, err = configuredArchives(ctx); err != nil {
			return 0, err
		}
	}
	with := archive.VerifyOptions{Witness: len(o.checkpoints) > 0, Sealed: o.sealed}
	for _, file := range o.keys {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		keys, err := archive.PublicKeys(string(text))
		if err != nil {
			return 0, fmt.Errorf("%s %w", file, err)
		}
		with.Keys = append(with.Keys, keys...)
	}
	hosts := map[string]bool{} // that a checkpoint is of
	for _, file := range o.checkpoints {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		notes := archive.FindNotes(text)
		if len(notes) == 0 {
			return 0, fmt.Errorf("%s has no checkpoint; it is a copy of checkpoint.note, or the lines of ctlogd's log that say \"checkpoint: ctlogd archive\"", file)
		}
		for _, n := range notes {
			if read, err := archive.ReadNote(n); err == nil {
				with.Notes = append(with.Notes, archive.Witness{From: file, Text: n, Time: read.Time})
				hosts[read.Host] = true
			}
		}
	}
	slices.SortStableFunc(with.Notes, func(a, b archive.Witness) int { return cmp.Compare(a.Time, b.Time) })
	r, err := archive.OpenReader(o.dirs...)
	if err != nil {
		return 0, err
	}
	progress := newProgress(stderr)
	with.Progress = progress.add
	var all []*archive.Verification
	for _, h := range r.Hosts {
		delete(hosts, h.Name)
		for _, f := range h.Segments() {
			progress.total += f.Segment.Bytes
		}
	}
	for _, h := range r.Hosts {
		v, err := archive.Verify(ctx, h, with)
		if ctx.Err() != nil {
			progress.end()
			return 0, ctx.Err()
		}
		if err != nil { // the others may be readable
			v = nothingOf(h.Name, h.Dir, archive.Finding{Verdict: archive.Unreadable, Text: err.Error()})
		}
		all = append(all, v)
	}
	progress.end()
	if !slices.ContainsFunc(o.dirs, oneHost) { // a whole archive has all hosts
		for _, name := range sortedKeys(hosts) {
			all = append(all, nothingOf(name, o.dirs[0], archive.Finding{Verdict: archive.Missing, File: "host=" + name,
				Text: "the host's folder is missing, and a checkpoint that was given is of it"}))
		}
	}
	for _, v := range all {
		code = max(code, verifyCode(v))
		if slices.ContainsFunc(v.Findings, func(f archive.Finding) bool { return tampered(f.Verdict) }) {
			code = verifyTampered
			break
		}
	}
	if o.json {
		return code, printAsJSON(stdout, all)
	}
	for i, v := range all {
		if i > 0 {
			fmt.Fprintln(stdout)
		}
		if _, err := io.WriteString(stdout, verdictText(v, with, clock())); err != nil {
			return 0, err
		}
	}
	return code, nil
}

// nothingOf is what is said of a host of which nothing could be looked at.
func nothingOf(host, dir string, why archive.Finding) *archive.Verification {
	return &archive.Verification{Host: host, Dir: dir, Verdict: why.Verdict, Findings: []archive.Finding{why},
		Removed: []archive.RemovedBy{}, Unsealed: []archive.Unsealed{}, Aside: []string{}}
}

func oneHost(dir string) bool {
	return strings.HasPrefix(filepath.Base(filepath.Clean(dir)), "host=")
}

func sortedKeys(m map[string]bool) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// tampered reports whether a verdict says that something is not as it was.
func tampered(verdict string) bool {
	return verdict != archive.Whole && verdict != archive.Unproven && verdict != archive.Unreadable
}

func verifyCode(v *archive.Verification) int {
	switch {
	case tampered(v.Verdict):
		return verifyTampered
	case v.Verdict == archive.Unproven:
		return verifyUnproven
	case v.Verdict == archive.Unreadable:
		return verifyUnreadable
	}
	return verifyWhole
}

// maxFindings is how many findings of a host are printed; --json has all.
const maxFindings = 20

// verdictText is what is said of a host.
func verdictText(v *archive.Verification, o archive.VerifyOptions, now time.Time) string {
	var b strings.Builder
	say := func(format string, args ...any) {
		b.WriteString("  " + printable.Text(fmt.Sprintf(format, args...)) + "\n")
	}
	word := v.Verdict
	switch {
	case v.Verdict == archive.Whole && len(v.Unsealed) > 0:
		word = "sealed and whole, but for what is not sealed yet"
	case v.Verdict == archive.Whole:
		word = "sealed and whole"
	}
	fmt.Fprintf(&b, "%s: %s\n", printable.Text(v.Host), word)
	for i := range v.Findings {
		f := &v.Findings[i]
		if i == maxFindings {
			say("... and %d findings more; --json has them all", len(v.Findings)-i)
			break
		}
		place := f.File
		if f.Line != 0 {
			place += fmt.Sprintf(":%d", f.Line)
		}
		say("%s", strings.Join(slices.DeleteFunc([]string{f.Verdict, place, f.String()}, func(s string) bool { return s == "" }), ": "))
	}
	span := ""
	if v.First != nil {
		span = fmt.Sprintf(", of %s to %s", short(*v.First), short(*v.Last))
	}
	say("%d segments are whole, with %d records%s; the catalog has %d lines", v.Segments, v.Records, span, v.Lines)
	for _, r := range v.Removed {
		say("%d segments were removed by %s, with %d records of %s to %s: by law or for room, and no tampering", r.Segments, r.Why, r.Records, short(r.First), short(r.Last))
	}
	for _, u := range v.Unsealed {
		covered := "no checkpoint covers it"
		switch {
		case u.Covered >= u.Bytes && u.Bytes > 0:
			covered = "the checkpoint covers all of it"
		case u.Covered > 0:
			covered = fmt.Sprintf("a checkpoint covers the first %d %% of it", u.Covered*100/u.Bytes)
		}
		say("not sealed, and so not verified: %d records since %s, in %s; %s", u.Records, short(u.Since), u.File, covered)
	}
	if len(v.Aside) > 0 {
		say("put aside by ctlogd as damaged or foreign: %s", strings.Join(v.Aside, ", "))
	}
	seen := func(what string, s *archive.Seen) {
		by := "not signed"
		switch {
		case len(s.By) > 0 && len(o.Keys) == 0:
			by = "signed by " + strings.Join(s.By, ", ") + ", which is what it says itself: compare that with your copy"
		case len(s.By) > 0:
			by = "signed by " + strings.Join(s.By, ", ")
		}
		say("%s: of %s, %s old, of %d lines of the catalog; %s", what, short(s.Time), s.Age(now).Round(time.Second), s.Lines, by)
	}
	if v.Note != nil {
		seen("checkpoint in the folder", v.Note)
	}
	if len(v.Others) > 0 {
		say("checkpoints of another archive of this host were given, and left out: of %s", strings.Join(v.Others, ", "))
	}
	switch {
	case v.Witness != nil:
		seen("newest checkpoint witnessed elsewhere", v.Witness)
		if more := uint64(v.Lines) - min(v.Witness.Lines, uint64(v.Lines)); more > 0 {
			say("the %d lines after it rest on the word of this copy alone", more)
		}
	default:
		say("no checkpoint that was kept elsewhere was compared: who is root on the firewall could have made all of this anew; see --checkpoint")
	}
	return b.String()
}

func short(t archive.Time) string { return time.Unix(0, int64(t)).UTC().Format("2006-01-02 15:04:05Z") }

// progress tells on a terminal how far a long reading is.
type progress struct {
	to          io.Writer // nil: nobody
	total, done int64
	began, last time.Time
}

func newProgress(stderr io.Writer) *progress {
	p := &progress{began: time.Now()}
	if isTerminal(stderr) {
		p.to = stderr
	}
	return p
}

func (p *progress) add(n int64) {
	p.done += n
	if now := clock(); p.to != nil && now.Sub(p.began) > time.Second && now.Sub(p.last) > time.Second/4 {
		p.last = now
		fmt.Fprintf(p.to, "\r%d of %d MiB, %d %% ", p.done>>20, p.total>>20, min(p.done*100/max(p.total, 1), 100))
	}
}

func (p *progress) end() {
	if !p.last.IsZero() {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}
