package ctnetlink

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoSocket: who has no descriptor left is not told to build another kernel.
func TestNoSocket(t *testing.T) {
	for err, want := range map[error]string{
		unix.EMFILE: "LimitNOFILE=", unix.ENFILE: "fs.file-max", unix.ENOMEM: "memory", unix.EPROTONOSUPPORT: "NETFILTER_NETLINK",
	} {
		got := noSocket(err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v", err, got)
		}
	}
}
