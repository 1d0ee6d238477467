//go:build integration

package archive

import (
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
)

var trace0 = trace.Default().Start.UnixNano()

func flowAddr(a, b, c, d byte) flow.Addr { return flow.AddrFrom4([4]byte{a, b, c, d}) }
