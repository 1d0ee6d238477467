//go:build small

package monitor

import "context"

// Server serves nothing: a small build has no metrics, and its configuration no block for them.
type Server struct{}

func (*Server) Configure(Config) {}

func (*Server) Close() {}

func (*Config) Check(context.Context) error { return nil }

func (*Config) Reach(context.Context) error { return nil }
