package subscriber

import (
	"errors"
	"fmt"
	"net/netip"
)

// claim is what a line of a file says.
type claim struct {
	prefix      netip.Prefix
	from, until int64 // ns since 1970. from 0: the file does not tell
	id, name    string
	over        bool // nobody has it any more
}

var (
	errLongText = fmt.Errorf("a text of more than %d bytes", MaxText)
	errNoID     = errors.New("nothing that says whose it is")
)

// check returns what is wrong with a claim.
func (c *claim) check() error {
	switch {
	case !c.prefix.IsValid():
		return errors.New("no address")
	case c.over:
		return nil
	case c.id == "":
		return errNoID
	case len(c.id) > MaxText || len(c.name) > MaxText:
		return errLongText
	case c.until != 0 && c.until <= c.from:
		return errors.New("it ends before it begins")
	}
	return nil
}

// parser reads the lines of a file. A claim may take several of them.
type parser interface {
	// line reads a line without its end. It calls tell with the claim that is complete with it, if one is, or returns what is
	// wrong. Line and claim belong to the caller and the parser again then.
	line(line []byte, tell func(*claim) error) error

	// about returns the prefix that a line speaks of, which line has just found broken or which is too long for it: not valid if
	// that cannot be read.
	about(line []byte) netip.Prefix

	// end is called behind the last line, and says whether something is missing.
	end() error
}
