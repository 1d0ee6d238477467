// Command processors checks that the program is right Go for other processors, where int may have 32 bits and structs of
// the kernel differ. Its arguments are processors, as GOARCH has them, with build tags behind a comma, if any: mips,small.
// To check the program's types takes seconds for each of them, to compile it (make cross-all) more than a minute.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

func main() {
	var all sync.WaitGroup
	var failed atomic.Bool
	for _, build := range os.Args[1:] {
		all.Go(func() {
			arch, tags, _ := strings.Cut(build, ",")
			n, err := check(arch, tags, "./cmd/ctlogd")
			if err != nil {
				failed.Store(true)
				fmt.Fprintf(os.Stderr, "%s: %v\n", build, err)
				return
			}
			fmt.Printf("%s: the types of %d packages are right\n", build, n)
		})
	}
	all.Wait()
	if failed.Load() {
		os.Exit(1)
	}
}

// listed is what go list says of a package.
type listed struct {
	ImportPath, Dir string
	GoFiles         []string
	ImportMap       map[string]string
	Module          *struct{ Main bool }
}

// imports are the packages that are checked so far, as one of them sees them.
type imports struct {
	names map[string]string // the importer's ImportMap
	types map[string]*types.Package
}

func (i imports) Import(path string) (*types.Package, error) {
	if to := i.names[path]; to != "" {
		path = to
	}
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	if p := i.types[path]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%s is not checked yet", path)
}

// check checks the types of the program and of all that it imports, and returns how many of the packages are ours. Of the
// others it checks the declarations alone.
func check(arch, tags, program string) (ours int, err error) {
	cmd := exec.Command("go", "list", "-tags", tags, "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Module", program)
	cmd.Env = append(os.Environ(), "GOARCH="+arch, "GOOS=linux", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("go list: %w", err)
	}
	sizes := types.SizesFor("gc", arch)
	if sizes == nil {
		return 0, errors.New("no such processor")
	}
	checked := map[string]*types.Package{}
	for d := json.NewDecoder(bytes.NewReader(list)); ; { // a package comes after its imports
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return ours, nil
		} else if err != nil {
			return 0, err
		}
		if p.ImportPath == "unsafe" {
			continue
		}
		own := p.Module != nil && p.Module.Main
		fset := token.NewFileSet()
		var files []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				return 0, err
			}
			files = append(files, f)
		}
		var wrong []error
		conf := types.Config{IgnoreFuncBodies: !own, Sizes: sizes, Importer: imports{p.ImportMap, checked},
			Error: func(err error) { wrong = append(wrong, err) }}
		checked[p.ImportPath], _ = conf.Check(p.ImportPath, fset, files, nil)
		if own {
			ours++
			if len(wrong) > 0 {
				return 0, errors.Join(wrong...)
			}
		}
	}
}
