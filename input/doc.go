// Package input reads the kernel's connection tracking events (ctnetlink) and turns them into flow records.
//
// Open joins the groups of the events on one netlink socket, with a filter that drops in the kernel what nobody wants
// (bpf.go). Run reads the socket with recvmmsg into fixed slots (conntrack.go), decodes each message in place into a
// flow.Batch without allocating (decode.go), and hands batches over as they fill. It neither waits for anybody nor
// trusts a sender other than the kernel. What the kernel could not deliver is counted exactly (socket.go).
package input
