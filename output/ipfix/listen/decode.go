// Package listen decodes IPFIX messages and prints their records as JSON lines with the names of their elements: a
// proof that export works that needs no collector. calmh/ipfix does the decoding, which shares nothing with the encoder.
package listen

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"time"

	calmh "github.com/calmh/ipfix"
)

const (
	headerLen       = 16
	setHeaderLen    = 4
	setTemplate     = 2
	setOptTemplates = 3
	variable        = 0xffff
)

// A Decoder turns messages into JSON lines. It keeps the templates of each source and observation domain, and what type
// records say about enterprise elements (RFC 5610). It is for one goroutine.
type Decoder struct {
	domains map[domainKey]*domain
	names   map[elementKey]elementType
}

type domainKey struct {
	source string
	id     uint32
}

// domain is the templates of an observation domain.
type domain struct {
	session *calmh.Session
	in      *calmh.Interpreter
	known   map[uint16]bool
}

type elementKey struct {
	pen uint32
	id  uint16
}

type elementType struct {
	name string
	kind uint8 // informationElementDataType
}

// NewDecoder returns a Decoder that knows the elements of the IANA registry.
func NewDecoder() *Decoder {
	return &Decoder{domains: map[domainKey]*domain{}, names: map[elementKey]elementType{}}
}

// Append decodes one message from source and appends a line for each of its data records to dst. What cannot be decoded
// for want of a template gives a line that says so. An error means that the message is malformed; the lines of the sets
// before the malformed one are appended all the same.
func (d *Decoder) Append(dst []byte, source string, message []byte) ([]byte, error) {
	switch {
	case len(message) < headerLen:
		return dst, fmt.Errorf("message of %d octets is shorter than its header", len(message))
	case binary.BigEndian.Uint16(message) != 10:
		return dst, fmt.Errorf("version is %d, IPFIX has 10", binary.BigEndian.Uint16(message))
	case int(binary.BigEndian.Uint16(message[2:])) != len(message):
		return dst, fmt.Errorf("length field says %d, message has %d octets",
			binary.BigEndian.Uint16(message[2:]), len(message))
	}
	h := header{
		export:   time.Unix(int64(binary.BigEndian.Uint32(message[4:])), 0).UTC(),
		source:   source,
		sequence: binary.BigEndian.Uint32(message[8:]),
		domain:   binary.BigEndian.Uint32(message[12:]),
	}
	dom := d.domain(domainKey{source, h.domain})
	for sets := message[headerLen:]; len(sets) > 0; {
		if len(sets) < setHeaderLen {
			return dst, errors.New("a set is shorter than its header")
		}
		id, n := binary.BigEndian.Uint16(sets), int(binary.BigEndian.Uint16(sets[2:]))
		if n < setHeaderLen || n > len(sets) {
			return dst, fmt.Errorf("set %d has an impossible length, %d", id, n)
		}
		var err error
		if dst, err = d.appendSet(dst, dom, h, message[:headerLen], id, sets[setHeaderLen:n]); err != nil {
			return dst, fmt.Errorf("set %d: %w", id, err)
		}
		sets = sets[n:]
	}
	return dst, nil
}

type header struct {
	export           time.Time
	source           string
	sequence, domain uint32
}

func (d *Decoder) domain(key domainKey) *domain {
	dom := d.domains[key]
	if dom == nil {
		s := calmh.NewSession()
		dom = &domain{session: s, in: calmh.NewInterpreter(s), known: map[uint16]bool{}}
		d.domains[key] = dom
	}
	return dom
}

// appendSet appends the records of a data set, and takes the templates from a template set.
func (d *Decoder) appendSet(dst []byte, dom *domain, h header, head []byte, id uint16, body []byte) ([]byte, error) {
	switch {
	case id == setTemplate || id == setOptTemplates:
		return dst, dom.learn(head, id == setOptTemplates, body)
	case id < 256:
		return dst, errors.New("reserved set id")
	case !dom.known[id]:
		dst = h.append(dst, id)
		return append(dst, `,"error":"no template yet"}`+"\n"...), nil
	}
	msg, err := dom.session.ParseBuffer(oneSet(head, id, body))
	if err != nil {
		return dst, err
	}
	for _, rec := range msg.DataRecords {
		dst = h.append(dst, id)
		dst = append(dst, `,"record":`...)
		dst = d.appendRecord(dst, dom.in.Interpret(rec))
		dst = append(dst, "}\n"...)
	}
	return dst, nil
}

// oneSet returns a message that holds one set.
func oneSet(head []byte, id uint16, body []byte) []byte {
	m := append([]byte(nil), head...)
	m = binary.BigEndian.AppendUint16(m, id)
	m = binary.BigEndian.AppendUint16(m, uint16(setHeaderLen+len(body)))
	m = append(m, body...)
	binary.BigEndian.PutUint16(m[2:], uint16(len(m)))
	return m
}

// learn hands each template of a set to calmh/ipfix. It skips options templates, but an options template without its
// scope field count is a template, and the records look alike. It would loop for ever over the data of a template whose
// records have no length; such a template is an error here.
func (dom *domain) learn(head []byte, options bool, body []byte) error {
	for len(body) >= 4 {
		id, fields := binary.BigEndian.Uint16(body), int(binary.BigEndian.Uint16(body[2:]))
		def := append([]byte(nil), body[:4]...)
		body = body[4:]
		if fields == 0 { // a withdrawal (RFC 7011, section 8.1)
			delete(dom.known, id)
			continue
		}
		if id < 256 {
			return fmt.Errorf("template id %d is reserved", id)
		}
		if options {
			if len(body) < 2 {
				return errors.New("options template is cut off")
			}
			body = body[2:]
		}
		size := 0
		for range fields {
			n := 4
			if len(body) >= 2 && body[0]&0x80 != 0 {
				n = 8
			}
			if len(body) < n {
				return fmt.Errorf("template %d is cut off", id)
			}
			if l := int(binary.BigEndian.Uint16(body[2:])); l == variable {
				size++
			} else {
				size += l
			}
			def = append(def, body[:n]...)
			body = body[n:]
		}
		if size == 0 || size > math.MaxUint16 {
			return fmt.Errorf("template %d has records of %d octets", id, size)
		}
		if _, err := dom.session.ParseBuffer(oneSet(head, setTemplate, def)); err != nil {
			return err
		}
		dom.known[id] = true
	}
	return nil
}

func (h *header) append(dst []byte, template uint16) []byte {
	dst = append(dst, `{"export_time":"`...)
	dst = h.export.AppendFormat(dst, time.RFC3339)
	dst = append(dst, `","source":`...)
	dst = appendString(dst, h.source)
	dst = append(dst, `,"domain":`...)
	dst = strconv.AppendUint(dst, uint64(h.domain), 10)
	dst = append(dst, `,"sequence":`...)
	dst = strconv.AppendUint(dst, uint64(h.sequence), 10)
	dst = append(dst, `,"template":`...)
	return strconv.AppendUint(dst, uint64(template), 10)
}

// appendRecord appends an object of the fields in the template's order. A name that comes again gets "_2" and so on.
func (d *Decoder) appendRecord(dst []byte, fields []calmh.InterpretedField) []byte {
	var info typeRecord
	seen := map[string]int{}
	dst = append(dst, '{')
	for i, f := range fields {
		name, value := f.Name, f.Value
		if name == "" {
			name, value = d.interpret(f)
		}
		info.note(f, value)
		if seen[name]++; seen[name] > 1 {
			name += "_" + strconv.Itoa(seen[name])
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, name)
		dst = append(dst, ':')
		dst = appendValue(dst, value)
	}
	if info.name != "" && info.pen != 0 {
		d.names[elementKey{info.pen, info.id}] = elementType{info.name, info.kind}
	}
	return append(dst, '}')
}

// interpret returns name and value of an element that is not in the IANA registry: from a type record, else its number
// and its octets.
func (d *Decoder) interpret(f calmh.InterpretedField) (string, any) {
	t, ok := d.names[elementKey{f.EnterpriseID, f.FieldID}]
	if !ok {
		return fmt.Sprintf("%d/%d", f.EnterpriseID, f.FieldID), f.RawValue
	}
	switch {
	case t.kind >= 1 && t.kind <= 4 && len(f.RawValue) <= 8: // unsigned8 to unsigned64
		var n uint64
		for _, b := range f.RawValue {
			n = n<<8 | uint64(b)
		}
		return t.name, n
	case t.kind == 13:
		return t.name, string(f.RawValue)
	}
	return t.name, f.RawValue
}

// typeRecord gathers what a type record says.
type typeRecord struct {
	elementType
	pen uint32
	id  uint16
}

func (t *typeRecord) note(f calmh.InterpretedField, value any) {
	if f.EnterpriseID != 0 {
		return
	}
	switch v := value.(type) {
	case uint32:
		if f.FieldID == 346 { // privateEnterpriseNumber
			t.pen = v
		}
	case uint16:
		if f.FieldID == 303 { // informationElementId
			t.id = v
		}
	case uint8:
		if f.FieldID == 339 { // informationElementDataType
			t.kind = v
		}
	case string:
		if f.FieldID == 341 { // informationElementName
			t.name = v
		}
	}
}

func appendValue(dst []byte, value any) []byte {
	switch v := value.(type) {
	case time.Time:
		return v.UTC().AppendFormat(append(dst, '"'), `2006-01-02T15:04:05.000Z"`)
	case *net.IP:
		return appendString(dst, v.String())
	case []byte:
		return append(hex.AppendEncode(append(dst, '"'), v), '"')
	case string:
		return appendString(dst, v)
	}
	b, err := json.Marshal(value)
	if err != nil { // a float that JSON has no way to write
		return appendString(dst, fmt.Sprint(value))
	}
	return append(dst, b...)
}

func appendString(dst []byte, s string) []byte {
	b, _ := json.Marshal(s) // cannot fail for a string
	return append(dst, b...)
}
