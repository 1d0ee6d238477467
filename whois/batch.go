package whois

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// Item is a question of a batch, or why it is none.
type Item struct {
	Line     string // where it stands, and what it says
	Question *Question
	Err      error
}

// BatchOptions say how a batch is read.
type BatchOptions struct {
	Now    time.Time
	Zone   *time.Location // of times that have none
	Within time.Duration
	Case   string
}

// MaxBatch is how many bytes a batch has at most.
const MaxBatch = 64 << 20

// maxDeep bounds how parts of a mail, and values of JSON, may be nested.
const maxDeep = 8

// ParseBatch reads questions as abuse desks get them: lines "IP port time", CSV, X-ARF as YAML or JSON, ACNS XML, or a mail
// that has one of these in it.
func ParseBatch(text []byte, o BatchOptions) ([]Item, error) {
	b := batch{o: o}
	b.read(text, 0)
	if len(b.items) == 0 {
		return nil, errors.New(`no question in it: write lines "IP port time", CSV with a head such as ip,port,time, or give an X-ARF or ACNS report; ask by hand what a mail says in words`)
	}
	return b.items, nil
}

type batch struct {
	o     BatchOptions
	items []Item
}

// fields are what a question is made of, as it is written. ip and anyPort are of whoever is meant by a report of one address;
// beside a source they are somebody else's: the port of an X-ARF report is the one that was attacked.
type fields struct{ address, port, ip, anyPort, day, at, first, zone, dst, dstPort, proto, ref string }

// set sets the field that a key of somebody else's format means; ok is false if it means none.
func (f *fields) set(key, value string) (ok bool) {
	var b strings.Builder
	for _, c := range strings.ToLower(key) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteRune(c)
		}
	}
	var to *string
	switch b.String() {
	case "sourceip", "srcip", "src", "source", "sourceaddress", "publicip", "natsrcip", "sourceidentifier", "sourceipv4":
		to = &f.address
	case "ip", "address", "ipaddress":
		to = &f.ip
	case "sourceport", "srcport", "publicport", "natsrcport":
		to = &f.port
	case "port":
		to = &f.anyPort
	case "time", "timestamp", "date", "datetime", "at", "when", "eventtime", "arrivaldate", "timestamputc", "timeutc", "dateutc":
		to = &f.at
		if day().MatchString(strings.TrimSpace(value)) { // the hour stands in a field of its own
			to = &f.day
		}
		if strings.HasSuffix(b.String(), "utc") && f.zone == "" {
			f.zone = "UTC"
		}
	case "firstseen": // of many attacks perhaps, where there is another time
		to = &f.first
	case "zone", "timezone", "tz":
		to = &f.zone
	case "dst", "dstip", "destination", "destinationip", "destip", "destinationaddress":
		to = &f.dst
	case "dstport", "destinationport", "destport":
		to = &f.dstPort
	case "proto", "protocol", "transport", "transportprotocol":
		to = &f.proto
	case "case", "id", "caseid", "reference", "ticket", "reportid":
		to = &f.ref
	default:
		return false
	}
	if value = strings.TrimSpace(value); value != "" && *to == "" {
		*to = value
	}
	return true
}

// day is a date without a time of day.
var day = pattern(`^(\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}\.\d{1,2}\.\d{4}|\d{1,2}[ /][A-Z][a-z]{2}[ /]\d{4})$`)

// settle decides whose address and port are asked for.
func (f *fields) settle() (remark string) {
	switch {
	case f.address == "":
		f.address, f.port = f.ip, cmp.Or(f.port, f.anyPort)
	case f.port == "" && f.anyPort != "":
		remark = fmt.Sprintf("Port %s was left out: beside a source, it may be the destination's. If it is the source's, ask with it.", f.anyPort)
	}
	if f.day != "" {
		f.at = strings.TrimSpace(f.day + " " + f.at)
	}
	f.at = cmp.Or(f.at, f.first)
	f.ip, f.anyPort, f.day, f.first = "", "", "", ""
	return remark
}

// add makes a question of the fields.
func (b *batch) add(line string, f fields) {
	q, err := b.question(f)
	b.items = append(b.items, Item{Line: line, Question: q, Err: err})
}

func (b *batch) question(f fields) (*Question, error) {
	q := &Question{Case: f.ref, Remark: f.settle()}
	if b.o.Case != "" {
		q.Case = b.o.Case
	}
	var err error
	if q.Public, err = ParseEnd(f.address); err != nil {
		return nil, err
	}
	if f.port != "" && !q.Public.HasPort {
		if q.Public.Port, err = parsePort(f.port); err != nil {
			return nil, err
		}
		q.Public.HasPort = true
	}
	if f.dst != "" {
		if q.Dst, err = ParseEnd(f.dst); err != nil {
			return nil, fmt.Errorf("destination: %w", err)
		}
		if f.dstPort != "" && !q.Dst.HasPort {
			if q.Dst.Port, err = parsePort(f.dstPort); err != nil {
				return nil, fmt.Errorf("destination: %w", err)
			}
			q.Dst.HasPort = true
		}
	}
	// A word that is no protocol of the network, such as BitTorrent or HTTP, says nothing here.
	if p, ok := flow.ParseProto(strings.ToLower(f.proto)); ok && f.proto != "" {
		q.Proto, q.HasProto = p, true
	}
	zone := b.o.Zone
	assumed := true
	if f.zone != "" {
		if zone, err = parseZone(f.zone); err != nil {
			return nil, err
		}
		assumed = false
	}
	m, err := ParseTime(f.at, b.o.Now, zone)
	if err != nil {
		return nil, err
	}
	m.Assumed = m.Assumed && assumed
	q.At = f.at
	q.SetTime(m, b.o.Within)
	return q, q.Validate(b.o.Now)
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port; write a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// clockTime is a time of day in a line.
var clockTime = pattern(`\b\d{1,2}:\d{2}\b`)

var header = pattern(`^[A-Za-z][A-Za-z0-9-]*:\s`)

// read reads a text in whichever form it is.
func (b *batch) read(text []byte, deep int) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	trimmed := bytes.TrimSpace(text)
	if deep > maxDeep {
		return
	}
	switch {
	case header().Match(trimmed) && b.mail(trimmed, deep): // which may have encoded any of the others
	case bytes.HasPrefix(trimmed, []byte("<")), bytes.Contains(trimmed, []byte("<Infringement")):
		if i := bytes.Index(trimmed, []byte("<Infringement")); i >= 0 {
			trimmed = trimmed[i:] // in a mail, text stands before it
		}
		b.xml(trimmed)
	case bytes.HasPrefix(trimmed, []byte("{")), bytes.HasPrefix(trimmed, []byte("[")) && !bytes.HasPrefix(trimmed, []byte("[2")) && json.Valid(trimmed):
		b.json(trimmed)
	case bytes.HasPrefix(trimmed, []byte("---")):
		b.yaml(trimmed)
	case header().Match(trimmed):
		b.yaml(trimmed)
	default:
		b.lines(text)
	}
}

// lines reads CSV, or lines "IP port time".
func (b *batch) lines(text []byte) {
	var head []string
	comma := rune(0)
	in := bufio.NewScanner(bytes.NewReader(text))
	in.Buffer(nil, 1<<20)
	n := 0
	for in.Scan() {
		n++
		s := strings.TrimSpace(in.Text())
		if s == "" || strings.HasPrefix(s, "#") {
			continue
		}
		where := strconv.Itoa(n) + ": " + s
		if comma == 0 {
			comma = ' '
			for _, c := range ",;\t" {
				if strings.ContainsRune(s, c) {
					comma = c
					break
				}
			}
			// A mail's date has a comma; CSV has one right behind the address, or a head.
			if first, _, _ := strings.Cut(s, string(comma)); comma != ' ' && strings.ContainsAny(strings.Trim(first, `"`), " \t") &&
				headOf(strings.Split(s, string(comma))) == nil {
				comma = ' '
			}
		}
		if comma == ' ' {
			b.add(where, splitLine(s))
			continue
		}
		r := csv.NewReader(strings.NewReader(s))
		r.Comma, r.LazyQuotes, r.TrimLeadingSpace = comma, true, true
		cells, err := r.Read()
		if err != nil {
			b.items = append(b.items, Item{Line: where, Err: fmt.Errorf("is no line of CSV: %w", err)})
			continue
		}
		if head == nil {
			if head = headOf(cells); head != nil {
				continue
			}
			head = []string{"ip", "port", "time", "proto", "dst", "dst_port"}
		}
		var f fields
		for i, c := range cells {
			if i < len(head) {
				f.set(head[i], c)
			}
		}
		b.add(where, f)
	}
	if err := in.Err(); err != nil {
		b.items = append(b.items, Item{Line: strconv.Itoa(n + 1), Err: fmt.Errorf("the rest is not read: %w", err)})
	}
}

// headOf returns the cells if they name columns.
func headOf(cells []string) []string {
	if len(cells) == 0 {
		return nil
	}
	if _, err := ParseEnd(cells[0]); err == nil {
		return nil
	}
	for _, c := range cells {
		if new(fields).set(c, "") {
			return cells
		}
	}
	return nil
}

// splitLine takes apart "IP port time", "IP:port time", and both with dst=ADDRESS:PORT and proto=NAME anywhere behind.
func splitLine(s string) (f fields) {
	var rest []string
	for i, w := range strings.Fields(s) {
		key, value, _ := strings.Cut(w, "=")
		switch {
		case i == 0:
			f.address = w
		case key == "dst" && value != "":
			f.dst = value
		case key == "proto" && value != "":
			f.proto = value
		case i == 1 && len(w) <= 5 && strings.Trim(w, "0123456789") == "":
			f.port = w
		default:
			rest = append(rest, w)
		}
	}
	f.at = strings.Join(rest, " ")
	return f
}

// xml reads ACNS: an Infringement has a Source with IP_Address, Port and TimeStamp.
func (b *batch) xml(text []byte) {
	d := xml.NewDecoder(bytes.NewReader(text))
	d.Strict = false
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil } // what matters is ASCII
	var f fields
	var path []string
	var ref string
	found := 0
	for {
		token, err := d.Token()
		if err != nil {
			if err != io.EOF && found == 0 {
				b.items = append(b.items, Item{Line: "XML", Err: fmt.Errorf("is no ACNS report: %w", err)})
			}
			return
		}
		switch t := token.(type) {
		case xml.StartElement:
			if len(path) > 64 {
				return
			}
			path = append(path, t.Name.Local)
			if t.Name.Local == "Source" {
				f = fields{}
			}
		case xml.CharData:
			if len(path) == 0 {
				continue
			}
			value := strings.TrimSpace(string(t))
			switch in := path[len(path)-1]; {
			case value == "":
			case in == "ID" && len(path) > 1 && path[len(path)-2] == "Case":
				ref = value
			case in == "IP_Address" || in == "Port" || in == "TimeStamp":
				f.set(in, value)
			case in == "Destination_IP":
				f.dst = value
			}
		case xml.EndElement:
			if t.Name.Local == "Source" && (f.ip != "" || f.at != "") {
				f.ref = ref
				found++
				b.add(strings.TrimSpace("ACNS "+ref+" "+f.ip), f)
			}
			if len(path) > 0 {
				path = path[:len(path)-1]
			}
			if t.Name.Local == "Infringement" {
				ref = ""
			}
		}
	}
}

// json reads X-ARF as JSON, and whatever else has an address and a time in one object; also one object a line.
func (b *batch) json(text []byte) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	for n := 1; ; n++ {
		var v any
		if err := d.Decode(&v); err != nil {
			if err != io.EOF {
				b.items = append(b.items, Item{Line: "JSON value " + strconv.Itoa(n), Err: fmt.Errorf("is no JSON: %w", err)})
			}
			return
		}
		before := len(b.items)
		b.object(v, "", 0)
		if len(b.items) == before {
			b.items = append(b.items, Item{Line: "JSON value " + strconv.Itoa(n), Err: errors.New("has no address with a time, such as SourceIp and Date")})
		}
	}
}

func (b *batch) object(v any, ref string, deep int) {
	if deep > maxDeep {
		return
	}
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			b.object(e, ref, deep+1)
		}
	case map[string]any:
		var f fields
		for _, key := range slices.Sorted(maps.Keys(v)) {
			switch x := v[key].(type) {
			case string:
				f.set(key, x)
			case json.Number:
				f.set(key, x.String())
			}
		}
		if f.ref == "" {
			f.ref = ref
		}
		if a := cmp.Or(f.address, f.ip); a != "" && (f.at != "" || f.day != "" || f.first != "") {
			if _, err := ParseEnd(a); err == nil || f.port != "" || f.anyPort != "" {
				b.add(strings.TrimSpace("JSON "+f.ref+" "+a), f)
				return
			}
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			b.object(v[key], f.ref, deep+1)
		}
	}
}

// yaml reads X-ARF as YAML, and ARF's report: keys with values, one a line. An empty line or --- ends one.
func (b *batch) yaml(text []byte) {
	var f fields
	end := func() {
		if a := cmp.Or(f.address, f.ip); a != "" {
			b.add(strings.TrimSpace("X-ARF "+f.ref+" "+a), f)
		}
		f = fields{}
	}
	for _, s := range strings.Split(string(text), "\n") {
		s = strings.TrimSpace(s)
		if s == "---" || s == "..." {
			end()
			continue
		}
		if key, value, ok := strings.Cut(s, ":"); ok {
			f.set(key, strings.Trim(strings.TrimSpace(value), `"'`))
		}
	}
	end()
}

// mail reads the parts of a mail. It reports whether it is one.
func (b *batch) mail(text []byte, deep int) bool {
	m, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		return false
	}
	isMail := false
	for _, key := range []string{"From", "Mime-Version", "Received", "Return-Path", "Message-Id", "Content-Type"} {
		isMail = isMail || m.Header.Get(key) != ""
	}
	if !isMail {
		return false
	}
	b.part(m.Header.Get("Content-Type"), m.Header.Get("Content-Transfer-Encoding"), m.Body, deep)
	return true
}

// part reads one part of a mail.
func (b *batch) part(kind, encoding string, body io.Reader, deep int) {
	if deep > maxDeep {
		return
	}
	body = io.LimitReader(body, MaxBatch)
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	}
	media, params, err := mime.ParseMediaType(kind)
	if err != nil {
		media = "text/plain"
	}
	if strings.HasPrefix(media, "multipart/") {
		for r := multipart.NewReader(body, params["boundary"]); ; {
			p, err := r.NextRawPart()
			if err != nil {
				return
			}
			b.part(p.Header.Get("Content-Type"), p.Header.Get("Content-Transfer-Encoding"), p, deep+1)
		}
	}
	text, _ := io.ReadAll(body)
	trimmed := bytes.TrimSpace(text)
	switch {
	case media == "message/rfc822":
		b.mail(trimmed, deep+1)
	case media == "message/feedback-report":
		b.yaml(trimmed)
	case bytes.Contains(trimmed, []byte("<Infringement")), bytes.HasPrefix(trimmed, []byte("{")), bytes.HasPrefix(trimmed, []byte("---")):
		b.read(trimmed, deep+1)
	case strings.HasSuffix(media, "/json"), media == "text/csv":
		b.read(trimmed, deep+1)
	case strings.HasSuffix(media, "yaml"), params["name"] == "report.txt":
		b.yaml(trimmed)
	case media == "text/plain":
		// Prose, with lines of questions among it perhaps.
		for n, s := range strings.Split(string(trimmed), "\n") {
			s = strings.TrimSpace(s)
			f := splitLine(s)
			q, err := b.question(f)
			if _, not := ParseEnd(f.address); err == nil || not == nil && clockTime().MatchString(s) { // what is meant as one is not passed over
				b.items = append(b.items, Item{Line: strconv.Itoa(n+1) + ": " + s, Question: q, Err: err})
			}
		}
	}
}

// JSON writes what the item says if it is no question.
func (i *Item) JSON(w io.Writer) error {
	return json.NewEncoder(w).Encode(struct {
		V        int          `json:"v"`
		Question jsonQuestion `json:"question"`
		Error    string       `json:"error"`
	}{1, jsonQuestion{Line: i.Line}, i.Err.Error()})
}

// CSV writes what the item says if it is no question.
func (i *Item) CSV(w *csv.Writer) error {
	line := make([]string, len(CSVHead))
	line[8], line[9], line[len(line)-1] = "error", "false", i.Line+": "+i.Err.Error()
	return w.Write(line)
}
