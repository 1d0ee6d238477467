package format

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
)

const exampleVersion = "1.0.0"

// encoder returns an encoder of the format called name with the examples' options, less the keys of drop.
func encoder(t testing.TB, name string, drop ...string) Encoder {
	t.Helper()
	e, err := New(name, Options{
		Host: exampleHost, Observer: exampleObserver, Version: exampleVersion, Fields: Fields{Drop: drop},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// leaves returns the values of a JSON object by their paths, the keys and positions on the way joined by "/".
func leaves(t testing.TB, line []byte) map[string]any {
	t.Helper()
	_, v := parse(t, line)
	out := map[string]any{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				walk(path+"/"+k, e)
			}
		case []any:
			for i, e := range v {
				walk(fmt.Sprint(path, "/", i), e)
			}
			if len(v) == 0 {
				out[path+"/"] = nil
			}
		default:
			out[path] = v
		}
	}
	for k, e := range v {
		walk(k, e)
	}
	return out
}

// cefFields returns the header and the extension of a line of CEF.
func cefFields(t testing.TB, line []byte) (header []string, ext map[string]string) {
	t.Helper()
	s := string(line)
	for range 7 {
		i := 0
		for i < len(s) && s[i] != '|' {
			if s[i] == '\\' {
				i++
			}
			i++
		}
		if i >= len(s) {
			t.Fatalf("a header of %d fields in %q", len(header), line)
		}
		header, s = append(header, s[:i]), s[i+1:]
	}
	ext = map[string]string{}
	key, value := "", ""
	for len(s) > 0 {
		i := strings.IndexByte(s, '=')
		if i < 0 {
			t.Fatalf("no = in %q of %q", s, line)
		}
		key, s = s[:i], s[i+1:]
		if strings.ContainsFunc(key, func(r rune) bool { return r > 127 || !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
			t.Fatalf("key %q in %q", key, line)
		}
		// The value goes to the last space before the next = that is not escaped, or to the end.
		end, space := -1, -1
		for j := 0; j < len(s); j++ {
			switch s[j] {
			case '\\':
				j++
			case ' ':
				space = j
			case '=':
				end = space
			}
			if end >= 0 {
				break
			}
		}
		if end < 0 {
			end = len(s)
		}
		value = s[:end]
		s = s[min(end+1, len(s)):]
		if _, twice := ext[key]; twice {
			t.Fatalf("key %s twice in %q", key, line)
		}
		ext[key] = strings.NewReplacer(`\\`, `\`, `\=`, `=`, `\n`, "\n", `\r`, "\r").Replace(value)
	}
	return header, ext
}

// checkLine holds a line to what every format promises.
func checkLine(t testing.TB, name string, line []byte) {
	t.Helper()
	if !strings.HasPrefix(string(line), Begins(name)) {
		t.Fatalf("%s: a line that begins otherwise than with %s: %s", name, Begins(name), line)
	}
	if strings.ContainsAny(string(line), "\n\r\x00") || !utf8.Valid(line) {
		t.Fatalf("%s: not one line of UTF-8: %q", name, line)
	}
	if IsJSON(name) {
		if !json.Valid(line) {
			t.Fatalf("%s: no JSON: %s", name, line)
		}
		parse(t, line)
		return
	}
	cefFields(t, line)
}

func TestFormatsLines(t *testing.T) {
	for _, name := range Names {
		e := encoder(t, name)
		for _, ex := range append(examples(), generate(350)...) {
			checkLine(t, name, e.Append(nil, &ex.rec))
		}
		checkLine(t, name, e.Append(nil, &flow.Record{Event: flow.EventGap, Received: 1})) // a gap without its facts
		checkLine(t, name, e.Append(nil, &flow.Record{Event: flow.EventCheckpoint, Received: 1}))
		checkLine(t, name, e.Append(nil, &flow.Record{Received: 1}))
	}
}

// TestFormatsDrop drops each key by itself, and all at once: what is left has to be a part of what was there, and
// something of it has to go.
func TestFormatsDrop(t *testing.T) {
	recs := append(examples(), generate(21)...)
	for _, name := range Names[1:] {
		k, err := lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		all := k.carries.names()
		if name == "ocsf" {
			all = slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == "src_ip" }) // see Validate
		}
		values := func(line []byte) (out map[string]any) {
			if IsJSON(name) {
				out = leaves(t, line)
				for key := range out {
					if strings.HasPrefix(key, "related/ip/") { // their places shift
						delete(out, key)
					}
				}
				return out
			}
			_, ext := cefFields(t, line)
			out = map[string]any{}
			for k, v := range ext {
				out[k] = v
			}
			return out
		}
		var whole []map[string]any
		full := encoder(t, name)
		for _, ex := range recs {
			whole = append(whole, values(full.Append(nil, &ex.rec)))
		}
		for _, drop := range append(slices.Collect(slices.Chunk(k.carries.names(), 1)), all) {
			e := encoder(t, name, drop...)
			fewer := false
			for i, ex := range recs {
				want := whole[i]
				line := e.Append(nil, &ex.rec)
				checkLine(t, name, line)
				got := values(line)
				fewer = fewer || len(got) < len(want)
				for key, v := range got {
					if w, ok := want[key]; !ok || w != v {
						t.Fatalf("%s without %s: %s: %s is %v, was %v", name, drop, ex.name, key, v, w)
					}
				}
			}
			asked := len(drop) == 1 && slices.Contains(k.asked.names(), drop[0])
			if !fewer && !asked {
				t.Errorf("%s: nothing goes with %s", name, drop)
			}
		}
	}
}

// TestFormatsTell holds every format to the flat one: each value of it, as itself or in the unit that the format has,
// stands somewhere in the other's line.
func TestFormatsTell(t *testing.T) {
	for _, name := range []string{"ecs", "ocsf", "cim"} {
		e, plain := encoder(t, name), flatEncoder(t)
		for _, ex := range append(examples(), generate(700)...) {
			line := e.Append(nil, &ex.rec)
			have := map[string]bool{}
			for path, v := range leaves(t, line) {
				have[fmt.Sprint(v)] = true
				have[path] = true
			}
			for key, v := range leaves(t, plain.Append(nil, &ex.rec)) {
				root, _, _ := strings.Cut(key, "/")
				text := fmt.Sprint(v)
				switch {
				case root == "duration_ms" || name == "cim" && (root == "v" || root == "time"): // held to their values below
					continue
				case strings.HasSuffix(root, "_bytes") || strings.HasSuffix(root, "_packets"):
					if name != "cim" && len(text) >= 19 { // more than JSON's readers hold
						continue
					}
				case root == "proto" || root == "status" || root == "flags" || root == "clock":
					continue
				}
				if !have[text] {
					t.Fatalf("%s: %s: no %s of %s in\n%s", name, ex.name, text, key, line)
				}
			}
		}
	}
}

func TestFormatsUnits(t *testing.T) {
	r := exampleRecord(t, "destroy")
	for _, tt := range []struct{ format, path, want string }{
		{"ecs", "event/duration", "144614807113"},
		{"ecs", "network/bytes", "22944"},
		{"ecs", "network/iana_number", "6"},
		{"ecs", "source/nat/ip", "192.0.2.33"},
		{"ecs", "source/nat/port", "7211"},
		{"ecs", "related/ip/2", "198.51.100.80"},
		{"ecs", "related/ip/1", "192.0.2.33"},
		{"ecs", "event/reason", "tcp_fin"},
		{"ocsf", "time", "1773065076118"},
		{"ocsf", "time_dt", "2026-03-09T14:04:36.118920404Z"},
		{"ocsf", "start_time", "1773064931504"},
		{"ocsf", "duration", "144614"},
		{"ocsf", "src_endpoint/proxy_endpoint/port", "7211"},
		{"ocsf", "traffic/bytes_in", "20733"},
		{"ocsf", "traffic/bytes_out", "2211"},
		{"ocsf", "type_uid", "400102"},
		{"cim", "_time", "1773065076.118920404"},
		{"cim", "duration", "144.614807113"},
		{"cim", "bytes_out", "2211"},
		{"cim", "src_translated_ip", "192.0.2.33"},
		{"cim", "src_translated_port", "7211"},
		{"cim", "dest_ip", "198.51.100.80"},
		{"cim", "action", "teardown"},
		{"ulogd2", "reply.l4.dport", "7211"},
		{"ulogd2", "flow.start.usec", "504113"},
		{"ulogd2", "ct.event", "4"},
	} {
		got := leaves(t, encoder(t, tt.format).Append(nil, &r))[tt.path]
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %s = %v, want %s", tt.format, tt.path, got, tt.want)
		}
	}
	header, ext := cefFields(t, encoder(t, "cef").Append(nil, &r))
	if diff := cmp.Diff([]string{"CEF:0", "ctlogd", "ctlogd", exampleVersion, "destroy", "Flow ended", "1"}, header); diff != "" {
		t.Errorf("CEF's header (-want +got):\n%s", diff)
	}
	for key, want := range map[string]string{
		"rt": "1773065076118", "start": "1773064931504", "end": "1773065076118", "src": "10.64.3.7", "spt": "51544",
		"sourceTranslatedAddress": "192.0.2.33", "sourceTranslatedPort": "7211", "proto": "TCP", "in": "2211", "out": "20733",
		"reason": "tcp_fin", "cs1Label": "nat", "cs1": "snat", "dvchost": exampleHost,
	} {
		if ext[key] != want {
			t.Errorf("CEF: %s = %q, want %q", key, ext[key], want)
		}
	}

	reset := r
	reset.State = flow.TCPClose
	if got := leaves(t, encoder(t, "ocsf").Append(nil, &reset))["activity_id"]; fmt.Sprint(got) != "3" {
		t.Errorf("OCSF: a reset is activity %v, want 3", got)
	}
	past := flow.Record{Event: flow.EventNew, Received: -1}
	if got := leaves(t, encoder(t, "cim").Append(nil, &past))["_time"]; fmt.Sprint(got) != "-0.000000001" {
		t.Errorf("CIM: a time before 1970 is %v", got)
	}
}

func TestFormatsAllocs(t *testing.T) {
	recs := append(examples(), generate(140)...)
	h, state := newHasher(), []byte(nil)
	instrumented := testing.AllocsPerRun(20, func() { // with -race, crypto/sha1 allocates where it does not else
		state, _ = h.state.AppendBinary(state[:0])
	}) != 0
	for _, name := range Names {
		o := Options{Host: exampleHost, Observer: exampleObserver, Version: exampleVersion}
		if k, _ := lookup(name); k.asked != 0 {
			o.Add = k.asked.names()
		}
		if k, _ := lookup(name); instrumented && k.carries&community != 0 {
			o.Add, o.Drop = nil, community.names()
		}
		e, err := New(name, o)
		if err != nil {
			t.Fatal(err)
		}
		var buf []byte
		appendAll := func() {
			buf = buf[:0]
			for i := range recs {
				buf = e.Append(buf, &recs[i].rec)
			}
		}
		appendAll()
		if n := testing.AllocsPerRun(20, appendAll); n != 0 {
			t.Errorf("%s: %v allocations for %d records", name, n, len(recs))
		}
	}
}

func TestNewErrors(t *testing.T) {
	const unknown = `unknown format "xml"; allowed are: flat, ecs, ocsf, cim, ulogd2, cef`
	for _, tt := range []struct {
		format    string
		drop, add []string
		want      string
	}{
		{"", nil, nil, ""},
		{"flat", []string{"ct_id"}, []string{"community_id", "nat_community_id"}, ""},
		{"ecs", []string{"community_id"}, nil, ""},
		{"ulogd2", []string{"ct_id"}, nil, ""},
		{"xml", nil, nil, unknown},
		{"flat", nil, []string{"ct_id"}, `fields.add: cannot add "ct_id"; allowed are: community_id, nat_community_id`},
		{"flat", []string{"community_id"}, []string{"community_id"},
			"fields.add: community_id stands in fields.drop as well; write it in one of the two"},
		{"cim", []string{"dst_ip"}, []string{"nat_community_id"}, "fields.add: nat_community_id is a hash of dst_ip, " +
			"which fields.drop leaves out, and would give it away; leave out one of the two"},
		{"ulogd2", nil, []string{"community_id"}, "fields.add: format ulogd2 has no place for community_id and " +
			"nat_community_id; leave out fields.add, or use another format"},
		{"ulogd2", []string{"helper"}, nil, `fields.drop: cannot drop "helper"; allowed are: host, start, end, proto_num, ` +
			`src_ip, src_port, dst_ip, dst_port, nat_src_ip, nat_src_port, nat_dst_ip, nat_dst_port, icmp_type, icmp_code, ` +
			`orig_packets, orig_bytes, reply_packets, reply_bytes, mark, ct_id`},
		{"ocsf", []string{"src_ip", "dst_ip"}, nil,
			"fields.drop: OCSF wants an address in each record; leave src_ip or dst_ip"},
	} {
		e, err := New(tt.format, Options{Fields: Fields{Drop: tt.drop, Add: tt.add}})
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tt.want || (e == nil) != (tt.want != "") {
			t.Errorf("New(%q, drop %s, add %s): error %q, want %q", tt.format, tt.drop, tt.add, got, tt.want)
		}
	}
}

// TestCommunityHidden holds the encoders to what a hash of a dropped key would tell.
func TestCommunityHidden(t *testing.T) {
	r := exampleRecord(t, "destroy")
	for _, name := range []string{"ecs", "ocsf"} {
		if line := encoder(t, name).Append(nil, &r); strings.Count(string(line), `"1:`) != 2 {
			t.Errorf("%s: want two community ids in %s", name, line)
		}
		if line := encoder(t, name, "dst_port").Append(nil, &r); strings.Contains(string(line), `"1:`) {
			t.Errorf("%s: a hash of dst_port, which was dropped, in %s", name, line)
		}
	}
}

// FuzzFormats wants lines that keep their form whatever the kernel and the configuration say.
func FuzzFormats(f *testing.F) {
	f.Add("ftp", "system_u:object_r:unlabeled_t:s0", "jsonl:/x", "gw1", uint8(3), uint16(0xffff), []byte("0123456789abcdef0123456789abcdef0123"))
	f.Add("a=b c=d", "x|y\\ z= \n\r", "\"\\|=", "\xff\u2028=|\\", uint8(7), uint16(1), []byte{})
	f.Add("\\", "\\", "]\"\\", "h ost", uint8(5), uint16(0x1f), []byte{1})
	f.Fuzz(func(t *testing.T, helper, secctx, output, host string, event uint8, has uint16, raw []byte) {
		x := &flow.Extra{Helper: flow.NameFrom(helper), SecCtx: secctx, HasMaster: has&1 != 0, HasLabels: has&2 != 0}
		x.Subscriber = flow.Subscriber{ID: secctx, Name: host, Next: output, Source: helper, Dst: has&8 != 0}
		x.Gap = flow.Gap{Cause: flow.Cause(event) % flow.Cause(len(flow.CauseNames)), Output: output, LostKnown: has&4 != 0}
		r := flow.Record{Event: flow.Event(event), Has: flow.Has(has), Received: 1, Extra: x}
		var b [128]byte
		copy(b[:], raw)
		r.Orig.Proto, r.Orig.V6, r.Orig.HasZone = flow.Proto(b[0]), b[1]&1 != 0, b[1]&2 != 0
		r.Reply, x.Master = r.Orig, r.Orig
		copy(r.Orig.Src[:], b[2:])
		copy(r.Orig.Dst[:], b[18:])
		copy(r.Reply.Src[:], b[34:])
		r.Orig.SrcPort, r.Orig.DstPort = uint16(b[50])<<8|uint16(b[51]), uint16(b[52])<<8|uint16(b[53])
		r.Reply.SrcPort, r.State = uint16(b[54])<<8|uint16(b[55]), b[56]
		r.Status, x.Flags = flow.Status(b[57])<<24|flow.Status(b[58]), uint32(b[59])<<8
		for i, p := range []*int64{&r.Start, &r.Stop, &r.Stamp} {
			for _, c := range b[60+8*i : 68+8*i] {
				*p = *p<<8 | int64(c)
			}
		}
		for _, c := range b[84:92] {
			r.OrigCounters.Bytes = r.OrigCounters.Bytes<<8 | uint64(c)
			r.ReplyCounters.Bytes = ^r.OrigCounters.Bytes
		}
		for _, name := range Names {
			e, err := New(name, Options{Host: host, Observer: host, Version: host})
			if err != nil {
				t.Fatal(err)
			}
			checkLine(t, name, e.Append(nil, &r))
		}
	})
}

var update = flag.Bool("update", false, "write the examples of docs/formats.md anew")

// TestFormatsDoc holds docs/formats.md to what the encoders write of one flow, of a gap, and of a checkpoint.
func TestFormatsDoc(t *testing.T) {
	const file, mark = "../../docs/formats.md", "<!-- The examples are written by go test ./output/format -run Doc -update. -->\n"
	var want strings.Builder
	for _, example := range []string{"destroy", "gap", "checkpoint"} {
		for _, name := range Names {
			r := exampleRecord(t, example)
			line := encoder(t, name).Append(nil, &r)
			language := ""
			if IsJSON(name) {
				var pretty bytes.Buffer
				if err := json.Indent(&pretty, line, "", "  "); err != nil {
					t.Fatal(err)
				}
				line, language = pretty.Bytes(), "json"
			}
			fmt.Fprintf(&want, "\n%s, %s:\n\n```%s\n%s\n```\n", name, example, language, line)
		}
	}
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, got, ok := strings.Cut(string(doc), mark)
	if !ok {
		t.Fatalf("no %q in %s", mark, file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(text+mark+want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want.String(), got); diff != "" {
		t.Errorf("docs/formats.md: run the test with -update (-want +got):\n%s", diff)
	}
	for _, name := range Names {
		for _, key := range Lacks(name) {
			if !strings.Contains(text, "`"+key+"`") {
				t.Errorf("docs/formats.md does not say that %s lacks %s", name, key)
			}
		}
	}
	for _, want := range []string{"Schema " + ecsVersion, "Framework " + ocsfVersion} {
		if !strings.Contains(text, want) {
			t.Errorf("docs/formats.md does not say %q", want)
		}
	}
}
