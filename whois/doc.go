// Package whois answers who had an address and a port at a time, from an archive or from files of JSON lines, and says
// whether anything is missing around that time.
//
// A Question goes to a Source. The source yields the rows that may matter, and the facts of each host: its gaps, its
// checkpoints, what retention has removed. judge makes an Answer of both, by the rules of docs/whois.md; it reads no
// files. The other files write the answer: as text, as JSON or CSV, as a report; and read questions in bulk.
package whois
