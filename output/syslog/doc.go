// Package syslog sends records as syslog messages (RFC 5424): over UDP (RFC 5426), TCP (RFC 6587), TLS (RFC 5425), or to a
// unix socket, the local daemon's; or as fields to the journal. A message is the record in any format of package format behind a header that tells the
// box, the time and, as structured data, the flow id.
//
// A stream's messages are kept until the receiver's host has acknowledged them, and sent again in the next session if this
// one dies before. Syslog has no acknowledgement of its own: what the host had taken and the receiver has not read when it
// ends is lost, and nobody can tell.
package syslog
