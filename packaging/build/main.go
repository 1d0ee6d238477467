// Command build makes the packages: it builds static binaries, generates the manual pages, the completions and the
// licences of what is linked in, and has nfpm (packaging/nfpm) put them together: deb and rpm, and apk and ipk for OpenWrt,
// which hold the small build. The same commit gives the same bytes.
// It is run at the top of the repository and asks no network once the modules are there.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// family are packages that have the same files.
type family struct {
	list string // nfpm's, in packaging/nfpm
	tags string // of the build
	// arches are what they are built for: the name in the list or the file's name, and what Go has to know.
	arches map[string][]string
	order  string // of arches
}

var (
	servers = &family{list: "nfpm.yaml", order: "amd64,arm64,arm7", arches: map[string][]string{
		"amd64": {"GOARCH=amd64"},
		"arm64": {"GOARCH=arm64"},
		"arm7":  {"GOARCH=arm", "GOARM=7"},
	}}

	// routers are those of OpenWrt, by what its names of architectures begin with. There are arm_... without floating point
	// (arm_cortex-a9), and of the fifth version, so these get what works on all; the program hardly counts in fractions.
	// Nobody there speaks HTTP/2 with it.
	routers = &family{list: "openwrt.yaml", tags: "small,nethttpomithttp2", order: "x86_64,aarch64,arm,mipsel,mips", arches: map[string][]string{
		"x86_64":  {"GOARCH=amd64"},
		"aarch64": {"GOARCH=arm64"},
		"arm":     {"GOARCH=arm", "GOARM=5"},
		"mipsel":  {"GOARCH=mipsle", "GOMIPS=softfloat"},
		"mips":    {"GOARCH=mips", "GOMIPS=softfloat"},
	}}

	families = map[string]*family{"deb": servers, "rpm": servers, "apk": routers, "ipk": routers}
)

func main() {
	out := flag.String("o", "dist", "put the packages into `DIR`")
	version := flag.String("version", "", "the `VERSION`, as git describe prints it")
	commit := flag.String("commit", "", "the `COMMIT`")
	archList := flag.String("arch", servers.order+","+routers.order, "the architectures")
	formats := flag.String("format", "deb,rpm,apk,ipk", "the formats")
	flag.Parse()
	if err := run(*out, *version, *commit, strings.Split(*archList, ","), strings.Split(*formats, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "build packages:", err)
		os.Exit(1)
	}
}

func run(out, version, commit string, archList, formats []string) error {
	defer syscall.Umask(syscall.Umask(0o022)) // the modes of what is made here go into the packages
	date, err := commitDate()
	if err != nil {
		return err
	}
	b := &builder{version: packageVersion(version, commit, date), commit: commit, date: date}
	if b.nfpm, err = output(nil, "go", "-C", "packaging/nfpm", "tool", "-n", "nfpm"); err != nil {
		return err
	}
	if out, err = filepath.Abs(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if b.stage, err = os.MkdirTemp("", "ctlogd-package-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.stage)
	if err := b.common(); err != nil {
		return err
	}
	for _, format := range formats {
		if families[format] == nil {
			return fmt.Errorf("unknown format %q; there are deb, rpm, apk and ipk", format)
		}
	}
	if slices.ContainsFunc(formats, func(f string) bool { return families[f] == servers }) {
		if err := b.documentation(); err != nil {
			return err
		}
	}
	for _, arch := range archList {
		known := false
		for _, of := range []*family{servers, routers} {
			built := false
			if of.arches[arch] == nil {
				continue
			}
			known = true
			for _, format := range formats {
				if families[format] != of {
					continue
				}
				if !built {
					if err := b.binary(of, arch); err != nil {
						return err
					}
					built = true
				}
				name, err := b.pack(of, arch, format, out)
				if err != nil {
					return err
				}
				fmt.Println(name)
			}
		}
		if !known {
			return fmt.Errorf("unknown architecture %q; there are %s, and for OpenWrt %s", arch, servers.order, routers.order)
		}
	}
	return nil
}

// commitDate returns SOURCE_DATE_EPOCH, or else the time of the last commit.
func commitDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		var err error
		if text, err = output(nil, "git", "log", "-1", "--format=%ct"); err != nil {
			return time.Time{}, fmt.Errorf("find the date of the packages; outside of a clone set SOURCE_DATE_EPOCH: %w", err)
		}
	}
	sec, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(sec, 0).UTC(), nil
}

var described = regexp.MustCompile(`^v?([0-9]+\.[0-9]+[^-]*)(?:-([0-9]+)-g([0-9a-f]+))?(-dirty)?$`)

// packageVersion makes a version that dpkg and rpm take, and order, of what git describe says: 1.2.0, 1.2.0+4.9a9dc29 for
// the fourth commit after it, and 0.0.0+20261125.9a9dc29 where there is no version yet.
func packageVersion(version, commit string, date time.Time) string {
	m := described.FindStringSubmatch(version)
	if m == nil {
		v := "0.0.0+" + date.Format("20060102") + "." + commit
		if strings.HasSuffix(version, "-dirty") {
			v += ".dirty"
		}
		return v
	}
	v := m[1]
	if m[2] != "" {
		v += "+" + m[2] + "." + m[3]
	}
	if m[4] != "" {
		v += "+dirty"
	}
	return v
}

// apkVersion is such a version as apk takes it, which orders 1.2.0 before 1.2.0_p4: it knows no hash and no other words.
func apkVersion(version string) string {
	v, after, _ := strings.Cut(version, "+")
	if n, _, _ := strings.Cut(after, "."); n != "" && strings.Trim(n, "0123456789") == "" {
		v += "_p" + n
	}
	return v
}

// builder puts the files of the packages into stage, from where nfpm.yaml takes them.
type builder struct {
	version, commit string
	date            time.Time
	nfpm, stage     string
}

// common makes the files that are the same for all architectures.
func (b *builder) common() error {
	for from, to := range map[string]string{"packaging/systemd": "systemd", "packaging/deb": "deb", "packaging/rpm": "rpm",
		"packaging/openwrt": "openwrt", "docs": "docs"} {
		if err := os.CopyFS(filepath.Join(b.stage, to), os.DirFS(from)); err != nil {
			return err
		}
	}
	files := map[string]string{
		"packaging/nfpm/nfpm.yaml": "nfpm.yaml", "packaging/nfpm/openwrt.yaml": "openwrt.yaml", "packaging/ctlogd.yaml": "ctlogd.yaml", "packaging/copyright": "copyright",
		"packaging/lintian-overrides": "lintian-overrides", "ctlogd.yaml.example": "ctlogd.yaml.example",
		"README.md": "README.md", "docs/flow.schema.json": "flow.schema.json",
	}
	// Not their tests, should they have any.
	for _, pattern := range []string{"prometheus/*.yml", "grafana/*.json"} {
		shared, err := filepath.Glob("packaging/" + pattern)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(b.stage, "share", filepath.Dir(pattern)), 0o755); err != nil {
			return err
		}
		for _, file := range shared {
			files[file] = filepath.Join("share", filepath.Dir(pattern), filepath.Base(file))
		}
	}
	for from, to := range files {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(b.stage, to), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// documentation makes what is generated of the documentation, and of a ctlogd that is built for this machine.
func (b *builder) documentation() error {
	changes, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return err
	}
	if err := b.compressed("changelog.gz", debianChangelog(string(changes), b.version, b.date)); err != nil {
		return err
	}
	example, err := os.ReadFile("ctlogd.yaml.example")
	if err != nil {
		return err
	}
	page, err := configPage(string(example), b.version)
	if err != nil {
		return err
	}
	if err := b.compressed("ctlogd.yaml.5.gz", page); err != nil {
		return err
	}
	// Built for this machine, to print what it knows of itself.
	self := filepath.Join(b.stage, "self")
	if _, err := output([]string{"CGO_ENABLED=0"}, "go", b.build(self, "")...); err != nil {
		return err
	}
	for name, command := range map[string][]string{
		"ctlogd.8.gz": {"man"}, "ctlogd.bash": {"completion", "bash"}, "_ctlogd": {"completion", "zsh"},
		"ctlogd.fish": {"completion", "fish"},
	} {
		text, err := output(nil, self, command...)
		if err != nil {
			return err
		}
		write := b.plain
		if strings.HasSuffix(name, ".gz") {
			write = b.compressed
		}
		if err := write(name, text+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// build returns the arguments of go that build ctlogd into a file.
func (b *builder) build(file, tags string) []string {
	return []string{"build", "-trimpath", "-buildvcs=false", "-tags", tags, "-o", file,
		"-ldflags", fmt.Sprintf("-s -w -X main.version=%s -X main.commit=%s", b.version, b.commit), "./cmd/ctlogd"}
}

// binary builds ctlogd for an architecture, and gathers the licences of what is in it.
func (b *builder) binary(of *family, arch string) error {
	env := append([]string{"CGO_ENABLED=0", "GOOS=linux"}, of.arches[arch]...)
	if _, err := output(env, "go", b.build(filepath.Join(b.stage, "ctlogd"), of.tags)...); err != nil {
		return err
	}
	text, err := licences(env, of.tags)
	if err != nil {
		return err
	}
	if of == routers {
		script, err := os.ReadFile("packaging/openwrt/preinst")
		if err != nil {
			return err
		}
		if err := b.plain("openwrt/preinst", strings.ReplaceAll(string(script), "@ARCH@", arch)); err != nil {
			return err
		}
	}
	return b.compressed("third-party.gz", text)
}

// pack makes a package of what is in stage.
func (b *builder) pack(of *family, arch, format, out string) (name string, err error) {
	// What is made anew has the time of now, which would go into the package.
	err = filepath.WalkDir(b.stage, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, b.date, b.date)
	})
	if err != nil {
		return "", err
	}
	version, target := b.version, out+"/"
	if format == "apk" {
		version = apkVersion(version)
	}
	if of == routers { // nfpm knows them as packages for all
		target = filepath.Join(out, fmt.Sprintf("ctlogd_%s_%s.%s", version, arch, format))
	}
	cmd := exec.Command(b.nfpm, "package", "-f", of.list, "-p", format, "-t", target)
	cmd.Dir = b.stage
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(b.date.Unix(), 10),
		"PACKAGE_VERSION="+version, "PACKAGE_ARCH="+arch)
	text, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("nfpm: %w\n%s", err, text)
	}
	for line := range strings.Lines(string(text)) {
		if _, path, ok := strings.Cut(line, "created package: "); ok {
			return strings.TrimSpace(path), nil
		}
	}
	return "", fmt.Errorf("nfpm has not said what it made:\n%s", text)
}

// output returns what a command prints.
func output(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%s %s: %w\n%s", name, args[0], err, exit.Stderr)
	}
	return strings.TrimSpace(string(text)), err
}
