// Package live shows a running daemon to those who look: it answers on a unix socket (Server), to which the commands
// tap, top and status of the same binary are the clients (Client). When nobody looks, it costs one atomic load a batch. A
// client that reads too slowly misses records, and is told how many.
//
// The socket speaks HTTP, so that other tools can ask as well:
//
//	curl --unix-socket /run/ctlogd/ctlogd.sock 'http://ctlogd/tap?word=nat=snat'
package live
