package listen

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func golden(t testing.TB, names ...string) (messages [][]byte) {
	t.Helper()
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("..", "testdata", name+".hex"))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Fields(string(text)) {
			m, err := hex.DecodeString(line)
			if err != nil {
				t.Fatal(err)
			}
			messages = append(messages, m)
		}
	}
	return messages
}

const (
	nat44Line = `{"export_time":"2026-01-01T00:00:05Z","source":"here","domain":1,"sequence":8,"template":262,"record":{` +
		`"observationTimeMilliseconds":"2026-01-01T00:00:00.123Z","sourceIPv4Address":"10.1.2.3",` +
		`"postNATSourceIPv4Address":"203.0.113.5","destinationIPv4Address":"198.51.100.20",` +
		`"postNATDestinationIPv4Address":"198.51.100.20","sourceTransportPort":40000,"postNAPTSourceTransportPort":61000,` +
		`"destinationTransportPort":443,"postNAPTDestinationTransportPort":443,"ingressVRFID":5,"protocolIdentifier":6,` +
		`"natOriginatingAddressRealm":1,"natEvent":4}}`
	enterpriseFields = `"flowStartMilliseconds":"2026-01-01T00:00:00.123Z",` +
		`"flowEndMilliseconds":"2026-01-01T00:00:04.567Z",` +
		`"sourceIPv4Address":"192.0.2.10","destinationIPv4Address":"198.51.100.21","sourceTransportPort":40021,` +
		`"destinationTransportPort":21,"octetDeltaCount":2100,"packetDeltaCount":21,"reverseOctetDeltaCount":4200,` +
		`"reversePacketDeltaCount":42,"flowId":33,"protocolIdentifier":6,"flowEndReason":3,`
)

func TestDecode(t *testing.T) {
	tests := []struct {
		name     string
		messages [][]byte
		line     int
		want     string
	}{
		{"NAT event", golden(t, "07_nat44_session"), 0, nat44Line},
		{"options record", golden(t, "10_options_process_stats"), 0,
			`{"export_time":"2026-01-01T00:00:05Z","source":"here","domain":0,"sequence":0,"template":400,"record":{` +
				`"observationDomainId":1,"exportedMessageTotalCount":1001,"exportedFlowRecordTotalCount":20002,` +
				`"exportedOctetTotalCount":3000003}}`},
		{"enterprise elements without their types", golden(t, "09_flow4_enterprise_helper"), 0,
			`{"export_time":"2026-01-01T00:00:05Z","source":"here","domain":1,"sequence":12,"template":264,"record":{` +
				enterpriseFields + `"32473/2":"0000002a","32473/1":"667470"}}`},
		{"enterprise elements", golden(t, "11_options_rfc5610", "09_flow4_enterprise_helper"), 2,
			`{"export_time":"2026-01-01T00:00:05Z","source":"here","domain":1,"sequence":12,"template":264,"record":{` +
				enterpriseFields + `"ctMark":42,"ctHelperName":"ftp"}}`},
		{"no template", golden(t, "01_flow4")[1:], 0,
			`{"export_time":"2026-01-01T00:00:05Z","source":"here","domain":1,"sequence":0,"template":256,` +
				`"error":"no template yet"}`},
	}
	for _, tt := range tests {
		d := NewDecoder()
		var out []byte
		for _, m := range tt.messages {
			var err error
			if out, err = d.Append(out, "here", m); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
		if diff := cmp.Diff(tt.want, strings.Split(string(out), "\n")[tt.line]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestDomainsAndSources: a template holds for one source and one observation domain.
func TestDomainsAndSources(t *testing.T) {
	messages := golden(t, "07_nat44_session")
	other := bytes.Clone(messages[1])
	other[15] = 9
	for _, tt := range []struct {
		source  string
		message []byte
		decoded bool
	}{{"a", messages[1], true}, {"b", messages[1], false}, {"a", other, false}} {
		d := NewDecoder()
		if _, err := d.Append(nil, "a", messages[0]); err != nil {
			t.Fatal(err)
		}
		out, err := d.Append(nil, tt.source, tt.message)
		if err != nil {
			t.Fatal(err)
		}
		if got := !bytes.Contains(out, []byte("no template yet")); got != tt.decoded {
			t.Errorf("from %s: %s", tt.source, out)
		}
	}
}

func TestMalformed(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const rest = "00000000 00000000 00000001 "
	tests := []struct{ message, want string }{
		{"000a0010", "message of 4 octets is shorter than its header"},
		{"00090010 " + rest, "version is 9, IPFIX has 10"},
		{"000a0011 " + rest, "length field says 17, message has 16 octets"},
		{"000a0012 " + rest + "0002", "a set is shorter than its header"},
		{"000a0014 " + rest + "00020003", "set 2 has an impossible length, 3"},
		{"000a0014 " + rest + "00020005", "set 2 has an impossible length, 5"},
		{"000a0014 " + rest + "00040004", "set 4: reserved set id"},
		{"000a0018 " + rest + "00020008 01000001", "set 2: template 256 is cut off"},
		{"000a0018 " + rest + "00030008 01000001", "set 3: options template is cut off"},
		{"000a001c " + rest + "0002000c 00ff0001 00080004", "set 2: template id 255 is reserved"},
		{"000a001c " + rest + "0002000c 01000001 00080000", "set 2: template 256 has records of 0 octets"},
	}
	for _, tt := range tests {
		if _, err := NewDecoder().Append(nil, "here", unhex(tt.message)); err == nil || err.Error() != tt.want {
			t.Errorf("%s: error %v, want %s", tt.message, err, tt.want)
		}
	}
}

// FuzzDecode looks for messages that make the decoder panic, run for ever or print what is not JSON lines.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"01_flow4", "07_nat44_session", "09_flow4_enterprise_helper", "10_options_process_stats",
		"11_options_rfc5610"} {
		messages := golden(f, name)
		f.Add(messages[0], messages[1])
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := NewDecoder()
		for _, m := range [][]byte{first, second} {
			out, _ := d.Append(nil, "here", m)
			for line := range bytes.Lines(out) {
				if !bytes.HasPrefix(line, []byte(`{"export_time":"`)) || !bytes.HasSuffix(line, []byte("}\n")) {
					t.Errorf("line %q", line)
				}
			}
		}
	})
}

// lines returns a writer and a function that waits for the next line written to it.
func lines(t *testing.T) (io.WriteCloser, func() string) {
	r, w := io.Pipe()
	t.Cleanup(func() { r.Close() })
	buffered := bufio.NewReader(r)
	return w, func() string {
		line, err := buffered.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(line, "\n")
	}
}

func TestServe(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			w, next := lines(t)
			p := &printer{w: w, decoder: NewDecoder()}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			var to net.Addr
			if network == "udp" {
				conn, err := net.ListenPacket("udp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				to = conn.LocalAddr()
				go func() { done <- p.serveUDP(ctx, conn) }()
			} else {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				to = l.Addr()
				go func() { done <- p.serveTCP(ctx, l) }()
			}
			conn, err := net.Dial(network, to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, m := range golden(t, "07_nat44_session") {
				if _, err := conn.Write(m); err != nil {
					t.Fatal(err)
				}
			}
			want := strings.Replace(nat44Line, `"here"`, `"`+conn.LocalAddr().String()+`"`, 1)
			if diff := cmp.Diff(want, next()); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
			next()
			if _, err := conn.Write(make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
			want = `{"source":"` + conn.LocalAddr().String() + `","error":"version is 0, IPFIX has 10"}`
			if diff := cmp.Diff(want, next()); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "messages.ipfix")
	all := bytes.Join(golden(t, "07_nat44_session"), nil)
	if err := os.WriteFile(name, append(all, all[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Listen(t.Context(), name, &out); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(out.String(), "\n")
	want := strings.Replace(nat44Line, `"here"`, `"`+name+`"`, 1)
	if len(got) != 4 || got[0] != want || !strings.Contains(got[2], "length field says 76, message has 20 octets") {
		t.Errorf("output:\n%s", out.String())
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestErrors(t *testing.T) {
	if err := Listen(t.Context(), "sctp://:4739", io.Discard); err == nil ||
		err.Error() != `unknown scheme "sctp"; write udp://HOST:PORT, tcp://HOST:PORT or the name of a file` {
		t.Error(err)
	}
	if err := Listen(t.Context(), "/nonexistent", io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}

	name := filepath.Join(t.TempDir(), "messages.ipfix")
	if err := os.WriteFile(name, bytes.Join(golden(t, "07_nat44_session"), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Listen(t.Context(), name, full{}); err == nil || err.Error() != "disk full" {
		t.Error(err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- (&printer{w: full{}, decoder: NewDecoder()}).serveTCP(t.Context(), l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, m := range golden(t, "07_nat44_session") {
		conn.Write(m)
	}
	if err := <-done; err == nil || err.Error() != "disk full" {
		t.Error(err)
	}
}
