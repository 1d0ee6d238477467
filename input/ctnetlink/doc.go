// Package ctnetlink reads the kernel's connection tracking events (ctnetlink). It is the Source of an input.Reader.
//
// Open joins the groups of the events on one netlink socket, with a filter that drops in the kernel what nobody wants
// (bpf.go). Fill reads the socket with recvmmsg into fixed slots (block.go) and decodes each message in place into a
// flow.Batch without allocating (decode.go). It neither waits for anybody nor trusts a sender other than the kernel.
// Turn counts exactly what the kernel could not deliver (delivery.go), looks at the sysctls that decide what events hold
// (switches.go), and reads the connection tracking table a chunk at a time (table.go, dump.go).
//
// The guard (guard.go) has a goroutine of its own, from Open to Close. It keeps ended flows that nobody reads from
// filling the table, whatever the reader does.
package ctnetlink
