// Package datagram sends datagrams to receivers that do not answer: over UDP, or to a unix socket of this host. It is what
// output/syslog and output/ipfix have in common there.
//
// Nobody says that a datagram has arrived, once the kernel has taken it. Two things can be known, and a Socket knows them.
// Over UDP the receiver's host may say that nobody listens, by an ICMP message, which the kernel hands to a later call: what
// was sent is in doubt for 200 ms. To a unix socket, the kernel tells how much nobody has read yet, and whether somebody
// still listens. So a Socket has a session as a stream has: it carries octets, some of them have arrived, and it ends when
// somebody refuses. What had not arrived is the caller's to send again.
package datagram
