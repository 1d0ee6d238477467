// Package ownflow knows the sockets by which this process sends, so that their flows can be left out of the records: a
// firewall that exports the flows of its own export never comes to rest.
//
// Outputs dial with Sockets.DialContext, which notes each connection before its first packet leaves, or tell of their
// sockets with Sockets.Track. Sockets is a stage of the pipeline as well: it drops the records of those flows. A flow
// ends after its socket has closed (TIME_WAIT, the idle timeout of UDP), so a tuple stays known for an hour longer.
package ownflow
