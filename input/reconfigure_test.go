package input

import (
	"context"
	"testing"
)

// A change that the reader has not come to when the caller gives up is not made any more: what it needs may be closed.
func TestReconfigureTakenBack(t *testing.T) {
	c := &Conntrack{calls: make(chan func(), 1), wake: -1}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if _, err := c.Reconfigure(ctx, Config{}, nil, func() { t.Error("the change was made") }); err == nil {
			t.Fatal("no error")
		}
		c.answer()
	}
}
