package input_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayBeCalled are the functions of packages that can wait which this package and ctnetlink call, each with the reason why
// that keeps neither the reader nor the guard waiting.
var mayBeCalled = map[string]string{
	"os.ReadFile": "sysctls in /proc: no disk", "os.Open": "sysctls in /proc: no disk", "os.Stat": "/run, which is memory, and only without adjtimex",
	"time.Sleep": "naps, and slices of shedding",

	"unix.Socket": "", "unix.Bind": "", "unix.Eventfd": "", "unix.Close": "a netlink socket or an eventfd", "unix.FcntlInt": "", "unix.SetNonblock": "",
	"unix.CmsgLen": "", "unix.Adjtimex": "", "unix.GetsockoptInt": "", "unix.GetsockoptUint64": "", "unix.SetsockoptInt": "", "unix.SetsockoptSockFprog": "",
	"unix.Syscall6": "getsockopt", "unix.RawSyscall6": "recvmmsg with MSG_DONTWAIT",
	"unix.Recvfrom": "with MSG_DONTWAIT", "unix.Sendto": "a dump's request, on a goroutine of its own; a witness's, which is answered at once",
	"unix.Read": "an eventfd that does not block", "unix.Write": "an eventfd that does not block", "unix.Poll": "Wait, and ReadTable, which is its caller's",
}

// harmless are names in these packages that are no functions, or wait for nothing.
var harmless = []string{"os.File", "os.ErrPermission", "unix.Errno"}

// TestNothingWaits: nothing that may wait for a disk, a terminal or a network is called where the reader or the guard could
// come by. Whoever adds a call says here why it does not wait. What they are given (emit, Alive, Remember, Room, the log)
// promises as much.
func TestNothingWaits(t *testing.T) {
	called := map[string][]string{}
	for _, dir := range []string{".", "ctnetlink"} {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || names == nil {
			t.Fatalf("no files in %s: %v", dir, err)
		}
		for _, name := range names {
			if !strings.HasSuffix(name, "_test.go") {
				file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				for _, spec := range file.Imports {
					switch path := strings.Trim(spec.Path.Value, `"`); path {
					case "net", "io", "bufio", "net/http", "os/exec", "syscall", "log":
						t.Errorf("%s imports %s", name, path)
					}
				}
				ast.Inspect(file, func(n ast.Node) bool {
					call, ok := n.(*ast.CallExpr)
					if !ok {
						return true
					}
					if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
						if x, ok := sel.X.(*ast.Ident); ok && x.Obj == nil {
							f := x.Name + "." + sel.Sel.Name
							if x.Name == "os" || x.Name == "unix" || f == "time.Sleep" {
								called[f] = append(called[f], filepath.Base(name))
							}
						}
					}
					return true
				})
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(called)) {
		if _, ok := mayBeCalled[f]; !ok && !slices.Contains(harmless, f) {
			t.Errorf("%s is called in %v: does it wait?", f, called[f])
		}
	}
	for _, f := range slices.Sorted(maps.Keys(mayBeCalled)) {
		if called[f] == nil && f != "unix.Adjtimex" { // which is passed on as a function
			t.Errorf("%s is on the list, and nothing calls it", f)
		}
	}
}
