package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func (b *builder) plain(name, text string) error {
	return os.WriteFile(filepath.Join(b.stage, name), []byte(text), 0o644)
}

// compressed writes a gzip file, without a time in it.
func (b *builder) compressed(name, text string) error {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return b.plain(name, buf.String())
}

const maintainer = "The ctlogd authors <ctlogd@users.noreply.github.com>"

// debianChangelog has the newest section of CHANGELOG.md as Debian writes it.
func debianChangelog(changes, version string, date time.Time) string {
	_, section, _ := strings.Cut(changes, "\n## ")
	section, _, _ = strings.Cut(section, "\n## ")
	_, section, _ = strings.Cut(section, "\n")
	section = "\n" + strings.ReplaceAll(section, "\n### ", "\n- ### ") // headings among them
	_, entries, _ := strings.Cut(section, "\n- ")
	var text strings.Builder
	fmt.Fprintf(&text, "ctlogd (%s) unstable; urgency=medium\n\n", version)
	for entry := range strings.SplitSeq(entries, "\n- ") {
		if heading, ok := strings.CutPrefix(entry, "### "); ok {
			fmt.Fprintf(&text, "  [ %s ]\n", strings.TrimSpace(heading))
			continue
		}
		line := "  *"
		for _, word := range strings.Fields(entry) {
			if len(line)+1+len(word) > 76 {
				text.WriteString(line + "\n")
				line = "   "
			}
			line += " " + word
		}
		text.WriteString(line + "\n")
	}
	fmt.Fprintf(&text, "\n -- %s  %s", maintainer, date.Format(time.RFC1123Z))
	return text.String() + "\n"
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// licences returns the licences of all that is linked into the binary: of the modules, of packages in them that have one
// of their own, and of Go itself.
func licences(env []string, tags string) (string, error) {
	text, err := output(env, "go", "list", "-tags", tags, "-deps", "-json=Dir,Standard,Module", "./cmd/ctlogd")
	if err != nil {
		return "", err
	}
	root, err := output(nil, "go", "env", "GOROOT")
	if err != nil {
		return "", err
	}
	goVersion, err := output(nil, "go", "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	files := map[string]string{"Go's standard library, " + goVersion + ": LICENSE": filepath.Join(root, "LICENSE")}
	licensed := map[string]bool{} // by module
	for packages := json.NewDecoder(strings.NewReader(text)); ; {
		var p struct {
			Dir      string
			Standard bool
			Module   *struct {
				Path, Version, Dir string
				Main               bool
			}
		}
		if err := packages.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", err
		}
		if p.Standard || p.Module == nil || p.Module.Main {
			continue
		}
		name := p.Module.Path + " " + p.Module.Version
		licensed[name] = licensed[name] || false
		// Those of the package's directory, and of the ones above it up to the module's.
		for dir := p.Dir; ; dir = filepath.Dir(dir) {
			entries, err := os.ReadDir(dir)
			if err != nil {
				return "", err
			}
			for _, e := range entries {
				if e.IsDir() || !licenceFile.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
					continue
				}
				file := filepath.Join(dir, e.Name())
				rel, err := filepath.Rel(p.Module.Dir, file)
				if err != nil {
					return "", err
				}
				files[name+": "+rel] = file
				licensed[name] = true
			}
			if dir == p.Module.Dir || len(dir) <= len(p.Module.Dir) {
				break
			}
		}
	}
	for module, ok := range licensed {
		if !ok {
			return "", fmt.Errorf("%s is linked in and has no licence: %w", module, fs.ErrNotExist)
		}
	}
	var all strings.Builder
	all.WriteString("What is linked into ctlogd, and the terms under which it may be distributed.\n")
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		licence, err := os.ReadFile(files[name])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "\n%s\n%s\n%s\n\n%s\n", strings.Repeat("=", 80), name, strings.Repeat("=", 80),
			bytes.TrimSpace(licence))
	}
	return all.String(), nil
}

var (
	outerComment = regexp.MustCompile(`(?m)^#(\S|  )`) // of outputs and keys that are not there by default
	innerComment = regexp.MustCompile(`^( +)#(\S)`)    // of keys that are not set by default
	exampleKey   = regexp.MustCompile(`^( *)(- )?([a-z_]+):(?: (.*))?$`)
)

// configPage makes ctlogd.yaml(5) of the example: each key with its place, its default and its comment. What the
// commented-out lines of the example mean stands at its top.
func configPage(example, version string) (string, error) {
	var page strings.Builder
	fmt.Fprintf(&page, `.TH CTLOGD.YAML 5 "" "ctlogd %s" "File formats"
.SH NAME
ctlogd.yaml \- configuration of ctlogd
.SH DESCRIPTION
The file is YAML; anchors, aliases and << work.
Unknown keys and impossible values are errors.
.B ctlogd check \-c
.I FILE
says all that is wrong with a file, and with the host.
SIGHUP has a running ctlogd read it again.
.PP
The least that a configuration needs is one output:
.PP
.in +4n
.nf
outputs: {jsonl: [{path: /var/log/ctlogd/flows.jsonl}]}
.fi
.in
.PP
Below, [] stands for each entry of a list.
Where a list of plain values is expected, one value may stand alone.
Sizes are written 65536, 512KiB, 64MiB or 10G (which is 10GiB), durations 500ms, 30s, 1h30m, 7d or 2w.
.SH KEYS
`, version)
	_, body, ok := strings.Cut(example, "\n\n") // the example's introduction is for those who edit it
	if !ok {
		return "", errors.New("ctlogd.yaml.example has no introduction")
	}
	type level struct {
		indent int
		path   string
		unset  bool // all of it is but an example
	}
	var stack []level
	var comment []string
	seen := map[string]bool{}
	for line := range strings.Lines(body) {
		line = strings.TrimRight(line, "\n")
		unset := strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "#  ") && outerComment.MatchString(line)
		line = outerComment.ReplaceAllString(line, "$1")
		if innerComment.MatchString(line) {
			line, unset = innerComment.ReplaceAllString(line, "$1$2"), true
		}
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "# "); ok {
			comment = append(comment, text)
			continue
		}
		m := exampleKey.FindStringSubmatch(line)
		if m == nil {
			comment = nil
			continue
		}
		indent := len(m[1]) + len(m[2])
		for len(stack) > 0 && stack[len(stack)-1].indent >= indent {
			stack = stack[:len(stack)-1]
		}
		path := m[3]
		if len(stack) > 0 {
			parent := stack[len(stack)-1]
			if m[2] != "" && !strings.HasSuffix(parent.path, "[]") {
				stack[len(stack)-1].path += "[]" // its other keys are in the list as well
				parent = stack[len(stack)-1]
			}
			path = parent.path + "." + path
			unset = unset || parent.unset
		}
		stack = append(stack, level{indent, path, unset && indent == 0 || len(stack) > 0 && stack[len(stack)-1].unset})
		value := m[4]
		// A second entry, which is there for another example, describes nothing twice.
		if seen[path] {
			comment = nil
			continue
		}
		seen[path] = true
		fmt.Fprintf(&page, ".TP\n.B %s\n", roff(path))
		for _, c := range comment {
			page.WriteString(roff(c) + "\n")
		}
		if value != "" {
			intro := "Default:"
			if unset || strings.Contains(strings.Join(comment, " "), "no default") {
				intro = "For example:"
			}
			if len(comment) > 0 {
				page.WriteString(".br\n")
			}
			fmt.Fprintf(&page, "%s\n.I %s\n", intro, roff(value))
		} else if len(comment) == 0 {
			page.WriteString("A block of keys.\n")
		}
		comment = nil
	}
	page.WriteString(".SH \"SEE ALSO\"\n.BR ctlogd (8)\n")
	return page.String(), nil
}

// roff returns text such that man(7) takes none of it for its own.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return cmp.Or(text, `\&`)
}
