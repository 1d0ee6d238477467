//go:build integration

package integration

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// judge says what records ctlogd owes, from two witnesses that share no code with it: the XML of the conntrack tool,
// and for what the XML leaves out (status bits, masters, ids of ICMP, states of SCTP, who deleted a flow) the kernel's
// messages as github.com/ti-mo/conntrack decodes them.
type judge struct {
	ns                  *lab.NS
	flowXML, expectXML  *process
	flowFile, expectXMF string
	raw                 *netlink.Conn
	labelMap            string

	mu       sync.Mutex
	messages []message
	rawErr   error

	labels map[string][]string // label bits by the key of their flow
}

// message is an event with what its header says.
type message struct {
	conntrack.Event
	byRequest bool // nlmsg_pid is set: somebody asked for it
}

// labelBits are the labels of the gateway's rule set; the conntrack tool prints those that its map names.
var labelBits = []int{5, 77}

func newJudge(t *testing.T, ns *lab.NS) *judge {
	t.Helper()
	dir := t.TempDir()
	j := &judge{ns: ns, labels: map[string][]string{}}
	j.flowXML, j.flowFile = j.listen(t, filepath.Join(dir, "flows.xml"), "-E", "-b", "67108864")
	j.expectXML, j.expectXMF = j.listen(t, filepath.Join(dir, "expectations.xml"), "-E", "expect")
	j.flowXML.awaitMember(t, lab.GroupDestroy)
	j.expectXML.awaitMember(t, lab.GroupExpectNew)

	var err error
	must(t, ns.Do(func() error {
		j.raw, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	}))
	t.Cleanup(func() { j.raw.Close() })
	must(t, j.raw.SetReadBuffer(4<<20))
	for _, g := range []uint32{lab.GroupNew, lab.GroupUpdate, lab.GroupDestroy, lab.GroupExpectNew, lab.GroupExpectGone} {
		must(t, j.raw.JoinGroup(g))
	}
	go j.receive()

	// The tool looks for the names of labels in /etc/xtables/connlabel.conf alone: labelTool shows it an /etc that has it.
	j.labelMap = filepath.Join(dir, "etc")
	must(t, os.MkdirAll(filepath.Join(j.labelMap, "xtables"), 0o755))
	var m strings.Builder
	for _, bit := range labelBits {
		fmt.Fprintf(&m, "%d bit%d\n", bit, bit)
	}
	must(t, os.WriteFile(filepath.Join(j.labelMap, "xtables/connlabel.conf"), []byte(m.String()), 0o644))
	return j
}

func (j *judge) listen(t *testing.T, file string, args ...string) (*process, string) {
	t.Helper()
	f, err := os.Create(file)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	cmd := exec.Command("conntrack", append(args, "-o", "xml,id,timestamp,ktimestamp")...)
	cmd.Stdout = f
	return start(t, j.ns, cmd), file
}

func (j *judge) receive() {
	for {
		ms, err := j.raw.Receive()
		j.mu.Lock()
		for _, m := range ms {
			var e conntrack.Event
			if err = errors.Join(err, e.Unmarshal(m)); err == nil {
				j.messages = append(j.messages, message{e, m.Header.PID != 0})
			}
		}
		j.rawErr = err
		j.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// ended returns how many flows have ended so far.
func (j *judge) ended(t *testing.T) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	must(t, j.rawErr)
	for _, m := range j.messages {
		if m.Type == conntrack.EventDestroy {
			n++
		}
	}
	return n
}

// snapshot keeps the labels of the flows that are alive.
func (j *judge) snapshot(t *testing.T) {
	t.Helper()
	out, err := j.ns.Output("", "unshare", "--mount", "sh", "-c",
		"mount -t overlay overlay -o lowerdir="+j.labelMap+":/etc /etc && exec conntrack -L -o labels,xml,id")
	must(t, err)
	for _, f := range parseXML[xmlFlow](t, strings.NewReader(string(out))) {
		j.labels[f.key()] = f.own().Labels
	}
}

// xmlFlow is one <flow> of "conntrack -o xml".
type xmlFlow struct {
	Type   string    `xml:"type,attr"`
	Meta   []xmlMeta `xml:"meta"`
	Helper string    `xml:"helper"`
}

type xmlMeta struct {
	Direction string   `xml:"direction,attr"`
	Layer3    xmlHosts `xml:"layer3"`
	Layer4    xmlPorts `xml:"layer4"`
	Zone      *string  `xml:"zone"`
	Packets   *string  `xml:"counters>packets"`
	Bytes     *string  `xml:"counters>bytes"`
	// Of the direction "independent":
	State     string    `xml:"state"`
	Timeout   *string   `xml:"timeout"`
	Mark      *string   `xml:"mark"`
	ID        string    `xml:"id"`
	Assured   *struct{} `xml:"assured"`
	Unreplied *struct{} `xml:"unreplied"`
	Start     int64     `xml:"timestamp>start"`
	Stop      int64     `xml:"timestamp>stop"`
	Labels    []string  `xml:"labels>label"`
}

type xmlHosts struct {
	Src string `xml:"src"`
	Dst string `xml:"dst"`
}

type xmlPorts struct {
	Num    string `xml:"protonum,attr"`
	Name   string `xml:"protoname,attr"`
	Sport  string `xml:"sport"`
	Dport  string `xml:"dport"`
	SrcKey string `xml:"srckey"`
	DstKey string `xml:"dstkey"`
}

func (f *xmlFlow) meta(direction string) *xmlMeta {
	for i := range f.Meta {
		if f.Meta[i].Direction == direction {
			return &f.Meta[i]
		}
	}
	return &xmlMeta{}
}

func (f *xmlFlow) own() *xmlMeta { return f.meta("independent") }

// key tells flows apart as long as no tuple recurs.
func (f *xmlFlow) key() string {
	o := f.meta("original")
	return fmt.Sprint(f.own().ID, o.Layer4.Num, o.Layer3, o.Layer4.Sport, o.Layer4.Dport)
}

// parseXML returns the flows in a stream that may lack its end.
func parseXML[T any](t *testing.T, r io.Reader) (flows []T) {
	t.Helper()
	d := xml.NewDecoder(r)
	for {
		token, err := d.Token()
		var syntax *xml.SyntaxError
		if err == io.EOF || errors.As(err, &syntax) && strings.Contains(syntax.Msg, "EOF") {
			return flows
		}
		must(t, err)
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "flow" {
			var f T
			must(t, d.DecodeElement(&f, &e))
			flows = append(flows, f)
		}
	}
}

// record is a JSON line, or what it should be. Its numbers are json.Number.
type record map[string]any

func (r record) num(key, value string) {
	if value != "" {
		r[key] = json.Number(value)
	}
}

func (r record) opt(key string, value *string) {
	if value != nil {
		r[key] = json.Number(*value)
	}
}

func uintString[T ~uint8 | ~uint16 | ~uint32](n T) string { return strconv.FormatUint(uint64(n), 10) }

var statusNames = []string{ // enum ip_conntrack_status
	"expected", "seen_reply", "assured", "confirmed", "src_nat", "dst_nat", "seq_adjust", "src_nat_done", "dst_nat_done",
	"dying", "fixed_timeout", "template", "nat_clash", "helper", "offload", "hw_offload",
}

var sctpNames = []string{ // enum sctp_conntrack
	"none", "closed", "cookie_wait", "cookie_echoed", "established", "shutdown_sent", "shutdown_recd",
	"shutdown_ack_sent", "heartbeat_sent",
}

func names(bits uint32, of []string) []any {
	list := []any{}
	for i, name := range of {
		if bits>>i&1 != 0 {
			list = append(list, name)
		}
	}
	return list
}

func rfc3339(ns int64) string { return time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000000000Z") }

// protoName is the name of a protocol, or its number if the tool has no name for it.
func protoName(p xmlPorts) string {
	if p.Name == "unknown" {
		return p.Num
	}
	return p.Name
}

// destroys returns the record that every ended flow owes.
func (j *judge) destroys(t *testing.T) []record {
	t.Helper()
	file, err := os.Open(j.flowFile)
	must(t, err)
	defer file.Close()
	helpers := map[string]string{} // of NEW, by original tuple
	tuple := func(src, sport, dst, dport string) string { return strings.Join([]string{src, sport, dst, dport}, " ") }
	var records []record
	for _, f := range parseXML[xmlFlow](t, file) {
		o, p, own := f.meta("original"), f.meta("reply"), f.own()
		if f.Type == "new" && f.Helper != "" {
			helpers[tuple(o.Layer3.Src, o.Layer4.Sport, o.Layer3.Dst, o.Layer4.Dport)] = f.Helper
		}
		if f.Type != "destroy" {
			continue
		}
		r := record{
			"v": json.Number("1"), "event": "destroy", "time": rfc3339(own.Stop), "time_source": "kernel",
			"start": rfc3339(own.Start), "end": rfc3339(own.Stop),
			"duration_ms": json.Number(strconv.FormatInt((own.Stop-own.Start)/1e6, 10)),
			"proto":       protoName(o.Layer4), "proto_num": json.Number(o.Layer4.Num),
			"src_ip": o.Layer3.Src, "dst_ip": o.Layer3.Dst, "ct_id": json.Number(own.ID),
		}
		r.num("src_port", o.Layer4.Sport)
		r.num("dst_port", o.Layer4.Dport)
		r.opt("orig_packets", o.Packets)
		r.opt("orig_bytes", o.Bytes)
		r.opt("reply_packets", p.Packets)
		r.opt("reply_bytes", p.Bytes)
		r.opt("zone", own.Zone)
		r.opt("zone_orig", o.Zone)
		r.opt("zone_reply", p.Zone)
		r.opt("mark", own.Mark)
		if helper := helpers[tuple(o.Layer3.Src, o.Layer4.Sport, o.Layer3.Dst, o.Layer4.Dport)]; helper != "" {
			r["helper"] = helper
		}
		if labels := j.labels[f.key()]; len(labels) > 0 {
			r["labels"] = labelHex(t, labels)
		}
		if o.Layer4.Name == "tcp" {
			r["tcp_state"] = strings.ToLower(own.State)
		}
		for key, hex := range map[string]string{"gre_key": o.Layer4.SrcKey, "gre_dst_key": o.Layer4.DstKey} {
			if hex != "" {
				n, err := strconv.ParseUint(hex, 0, 32)
				must(t, err)
				r[key] = json.Number(strconv.FormatUint(n, 10))
			}
		}

		ended, born := j.messagesOf(t, own.ID, own.Start)
		status := uint32(ended.Flow.Status)
		r["status"] = names(status, statusNames)
		if assured, replied := status&4 != 0, status&2 != 0; assured != (own.Assured != nil) || replied == (own.Unreplied != nil) {
			t.Errorf("the witnesses differ on the status of %v", r)
		}
		snat := o.Layer3.Src != p.Layer3.Dst || o.Layer4.Sport != p.Layer4.Dport
		dnat := o.Layer3.Dst != p.Layer3.Src || o.Layer4.Dport != p.Layer4.Sport
		if op, pp := ended.Flow.TupleOrig.Proto, ended.Flow.TupleReply.Proto; op.ICMPv4 || op.ICMPv6 {
			r.num("icmp_type", uintString(op.ICMPType))
			r.num("icmp_code", uintString(op.ICMPCode))
			r.num("icmp_id", uintString(op.ICMPID))
			if pp.ICMPID != op.ICMPID {
				r.num("nat_icmp_id", uintString(pp.ICMPID))
				snat = true
			}
		}
		r["nat"] = "none"
		switch {
		case snat && dnat:
			r["nat"] = "both"
		case snat:
			r["nat"] = "snat"
		case dnat:
			r["nat"] = "dnat"
		}
		if snat {
			r["nat_src_ip"] = p.Layer3.Dst
			r.num("nat_src_port", p.Layer4.Dport)
		}
		if dnat {
			r["nat_dst_ip"] = p.Layer3.Src
			r.num("nat_dst_port", p.Layer4.Sport)
		}
		if s := ended.Flow.ProtoInfo.SCTP; s != nil {
			r["sctp_state"] = sctpNames[s.State]
		}
		if m := born.Flow.TupleMaster; m.IP.SourceAddress.IsValid() {
			src, dst := m.IP.SourceAddress.String(), m.IP.DestinationAddress.String()
			sport, dport := uintString(m.Proto.SourcePort), uintString(m.Proto.DestinationPort)
			r["master_proto"] = map[uint8]string{6: "tcp", 17: "udp"}[m.Proto.Protocol]
			r["master_src_ip"], r["master_dst_ip"] = src, dst
			r.num("master_src_port", sport)
			r.num("master_dst_port", dport)
			r["helper"] = helpers[tuple(src, sport, dst, dport)]
		}
		switch {
		case ended.byRequest:
			r["end_reason"] = "deleted"
		case own.State == "TIME_WAIT" && o.Layer4.Name == "tcp":
			r["end_reason"] = "tcp_fin"
		case own.State == "CLOSE" && o.Layer4.Name == "tcp":
			r["end_reason"] = "tcp_rst"
		case own.Timeout != nil:
			r["end_reason"] = "deleted"
		default:
			r["end_reason"] = "timeout"
		}
		records = append(records, r)
	}
	return records
}

// messagesOf returns the DESTROY of the flow with an id and a start, and the NEW that came last before it.
func (j *judge) messagesOf(t *testing.T, id string, start int64) (ended, born message) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, m := range j.messages {
		if m.Flow == nil || uintString(m.Flow.ID) != id {
			continue
		}
		switch {
		case m.Type == conntrack.EventNew:
			born = m
		case m.Type == conntrack.EventDestroy && m.Flow.Timestamp.Start.UnixNano() == start:
			if born.Flow == nil {
				t.Fatalf("the flow with id %s ended without a beginning", id)
			}
			return m, born
		}
	}
	t.Fatalf("the witnesses differ: no DESTROY message of the flow with id %s", id)
	return message{}, message{}
}

// labelHex returns the 128 bits that are named "bit5", "bit77" as the kernel sends them: bit 0 is the lowest of the
// first byte (on machines that are little-endian).
func labelHex(t *testing.T, labels []string) string {
	var b [16]byte
	for _, l := range labels {
		bit, err := strconv.Atoi(strings.TrimPrefix(l, "bit"))
		must(t, err)
		b[bit/8] |= 1 << (bit % 8)
	}
	return fmt.Sprintf("%x", b)
}

// xmlExpect is one <flow> of "conntrack -E expect -o xml".
type xmlExpect struct {
	Type   string `xml:"type,attr"`
	Layer3 struct {
		Expected xmlHosts `xml:"expected"`
		Mask     xmlHosts `xml:"mask"`
		Master   xmlHosts `xml:"master"`
	} `xml:"layer3"`
	Layer4 struct {
		xmlPorts
		Expected xmlPorts `xml:"expected"`
		Mask     xmlPorts `xml:"mask"`
		Master   xmlPorts `xml:"master"`
	} `xml:"layer4"`
	Helper  string `xml:"meta>helper-name"`
	Timeout string `xml:"meta>timeout"`
	Class   string `xml:"meta>class"`
}

// expectations returns the record that every event of an expectation owes, in order. Where the two witnesses do not
// tell the same story in the same order it fails.
func (j *judge) expectations(t *testing.T) (records []record) {
	t.Helper()
	file, err := os.Open(j.expectXMF)
	must(t, err)
	defer file.Close()
	var raw []*conntrack.Expect
	j.mu.Lock()
	for _, m := range j.messages {
		if m.Expect != nil {
			raw = append(raw, m.Expect)
		}
	}
	j.mu.Unlock()
	flows := parseXML[xmlExpect](t, file)
	if len(flows) != len(raw) {
		t.Fatalf("the witnesses differ: %d expectation events and %d", len(flows), len(raw))
	}
	for i, x := range flows {
		if got := uintString(raw[i].Tuple.Proto.DestinationPort); got != x.Layer4.Expected.Dport {
			t.Fatalf("the witnesses differ on expectation event %d: port %s and %s", i, x.Layer4.Expected.Dport, got)
		}
		r := record{
			"v": json.Number("1"), "event": "expect_" + x.Type, "time_source": "received",
			"proto": x.Layer4.Name, "src_ip": x.Layer3.Expected.Src, "dst_ip": x.Layer3.Expected.Dst,
			"mask_src_ip": x.Layer3.Mask.Src, "mask_dst_ip": x.Layer3.Mask.Dst, "helper": x.Helper,
			"master_proto": x.Layer4.Name, "master_src_ip": x.Layer3.Master.Src, "master_dst_ip": x.Layer3.Master.Dst,
			"flags": names(raw[i].Flags, []string{"permanent", "inactive", "userspace"}),
		}
		for key, value := range map[string]string{
			"proto_num": x.Layer4.Num, "src_port": x.Layer4.Expected.Sport, "dst_port": x.Layer4.Expected.Dport,
			"mask_src_port": x.Layer4.Mask.Sport, "mask_dst_port": x.Layer4.Mask.Dport, "class": x.Class,
			"master_src_port": x.Layer4.Master.Sport, "master_dst_port": x.Layer4.Master.Dport,
			"timeout_s": x.Timeout, "ct_id": uintString(raw[i].ID),
		} {
			r.num(key, value)
		}
		if x.Layer3.Mask.Src != "255.255.255.255" {
			r["wildcard"] = true
		}
		records = append(records, r)
	}
	return records
}
