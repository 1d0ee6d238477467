//go:build integration

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// WithoutNames runs a package's tests where nobody else has names for network namespaces: in a mount namespace of its own, in
// which dir is empty, and in others that more flags of unshare(1) ask for. It runs the test binary again for that, and returns
// its exit code. Without root it runs the tests where they are.
func WithoutNames(run func() int, dir string, flags ...string) (code int) {
	const inside = "CTLOGD_TEST_INSIDE"
	switch {
	case os.Geteuid() != 0:
		return run()
	case os.Getenv(inside) != "":
		for _, err := range []error{os.MkdirAll(dir, 0o755), unix.Mount("none", dir, "tmpfs", 0, "")} {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return run()
	}
	flags = append([]string{"--mount", "--propagation", "private"}, flags...)
	cmd := exec.Command("unshare", append(append(flags, os.Args[0]), os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
