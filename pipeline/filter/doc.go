// Package filter decides which records an output gets. The configuration's rules and the words of ctlogd tap are the
// same matchers, read and compiled by the same code.
//
//	cfg.Validate(report)                       // every mistake, with its place
//	accept := cfg.Compile()                    // a Func; nil accepts everything
//	accept, err := filter.ParseWords(words)    // nat=snat,dnat not:src=10.0.0.0/8
//	drop := filter.NewPushdown(global, each)   // what the kernel need not even send
//
// A matcher gives one of three verdicts: yes, no, or unknown when the record lacks the value (matcher.go). An unknown
// value neither matches nor matches negated. NewPushdown asks the same conditions what they may say of all records of
// one event, family and protocol (pushdown.go). That table is data: the input makes a socket filter of it, and neither
// knows the other.
//
// A compiled filter keeps no state and does not allocate.
package filter
