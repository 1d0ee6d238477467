// Package live shows a running daemon to those who look: it answers on a unix socket (Server), to which the commands
// tap, top and status of the same binary are the clients (Client). What it costs when nobody looks is one atomic load a
// batch; what somebody who looks cannot take in is dropped for him, and told.
//
// The socket speaks HTTP, so that other tools can ask as well:
//
//	curl --unix-socket /run/ctlogd/ctlogd.sock 'http://ctlogd/tap?word=nat=snat'
package live
