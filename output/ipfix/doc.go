// Package ipfix exports flow and NAT records to an IPFIX collector (RFC 7011) over UDP, TCP or TLS.
//
// Flows are exported as biflows (RFC 5103) with their translated addresses, NAT44 sessions as the create and delete
// events of RFC 8158. An element (element.go) is one field: its number and how to append itself from a record; a
// template (template.go) is a list of elements. An encoder (message.go) fills messages with records, an Exporter
// (exporter.go) numbers and sends them, over a transport (udp.go, stream.go).
//
// What goes on the wire is what every collector understands: one set in a message, one template in a template set, no
// padding, every field in the length that the registry gives it. docs/ipfix.md says which collector needs which of it.
package ipfix
