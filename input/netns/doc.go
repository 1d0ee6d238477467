// Package netns knows the other network namespaces of the machine: their names, their ids, and what is in them.
//
// A Watcher finds those that have a name, which is a mount below /run/netns (mounts.go), sees to it that each has an id in
// ctlogd's own namespace (ids.go), without which the kernel reports nothing of it, and opens in it what is asked of it later
// (enter.go). A namespace is entered once; a socket that was made inside stays there. What is known at one moment is a
// View, which never changes. The event path reads it without a lock.
//
// A namespace that nobody holds is destroyed, and its flows with it, of which the kernel reports nothing. The Watcher holds
// each that it knows. When the name goes, the Space is Leaving: whoever reads events has the time to read what the
// namespace has left, and then lets it go (Space.Release).
//
// All of it is done by the Watcher's goroutine, which may wait. Nobody waits for it.
package netns
