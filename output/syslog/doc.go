// Package syslog sends records as syslog messages (RFC 5424): over UDP (RFC 5426), TCP (RFC 6587), TLS (RFC 5425), or to a
// unix socket, the local daemon's; or as fields to the journal. A message is the record in any format of package format
// behind a header that tells the box, the time and, as structured data, the flow id.
//
// Messages are kept until they have arrived for all that is known, and sent again in the next session if this one dies
// before: over TCP until the receiver's host has acknowledged them, over UDP until it has had the time to refuse them, at a
// unix socket until they have been read. Syslog has no acknowledgement of its own: what a host had taken over TCP or UDP and
// the receiver has not read when it ends is lost, and nobody can tell.
package syslog
