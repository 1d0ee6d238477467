// Package collect reads what the collectors nfdump, nfacctd (pmacct), tshark, ipfixDump (libfixbuf) and python-ipfix
// have made of IPFIX messages, for the tests that hold it to what was sent.
//
// A record is a map from the names of information elements to their values as text: numbers in decimal, addresses in
// their shortest form, times in milliseconds of RFC 3339, UTC. Zeros are left out, because some collectors print them
// for what a record lacks. What a collector does not show is not in the map either; the slices of names say what it
// shows.
package collect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Record is one data record.
type Record = map[string]string

// millis is the form of times.
const millis = "2006-01-02T15:04:05.000Z"

// The elements that each collector shows, of those in ctlogd's templates for flows and NAT events.
var (
	NfdumpElements  = append(values(nfdumpNames), "icmpTypeCodeIPv4", "icmpTypeCodeIPv6")
	NfacctdElements = append(values(nfacctdNames), "sourceIPv4Address", "sourceIPv6Address", "destinationIPv4Address",
		"destinationIPv6Address")
	TsharkElements = values(tsharkNames)
)

func values(names map[string]string) []string { return slices.Sorted(maps.Values(names)) }

// Pick returns the elements of m that a collector shows, without zeros.
func Pick(m Record, elements []string) Record {
	picked := Record{}
	for _, name := range elements {
		if v := m[name]; v != "" && v != "0" {
			picked[name] = v
		}
	}
	return picked
}

// Sorted returns the records in an order that depends on nothing but themselves: in IPFIX, records of different
// templates overtake each other.
func Sorted(list []Record) []Record {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Record) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return list
}

// output runs a program to its end and returns its standard output.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, &stderr)
	}
	return string(out), nil
}

// object is a JSON object with every value as text.
type object map[string]string

func (o *object) UnmarshalJSON(b []byte) error {
	var raw map[string]any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&raw); err != nil {
		return err
	}
	*o = object{}
	for k, v := range raw {
		(*o)[k] = fmt.Sprint(v)
	}
	return nil
}

// rename returns the values of o under the names of elements, zeros left out.
func (o object) rename(names map[string]string) Record {
	m := Record{}
	for name, v := range o {
		if element, ok := names[name]; ok && v != "" && v != "0" {
			m[element] = v
		}
	}
	return m
}

var nfdumpNames = map[string]string{
	"first": "flowStartMilliseconds", "last": "flowEndMilliseconds", "in_packets": "packetDeltaCount",
	"in_bytes": "octetDeltaCount", "out_packets": "reversePacketDeltaCount", "out_bytes": "reverseOctetDeltaCount",
	"proto": "protocolIdentifier", "src_port": "sourceTransportPort", "dst_port": "destinationTransportPort",
	"src4_addr": "sourceIPv4Address", "dst4_addr": "destinationIPv4Address", "src6_addr": "sourceIPv6Address",
	"dst6_addr": "destinationIPv6Address", "src4_xlt_ip": "postNATSourceIPv4Address",
	"dst4_xlt_ip": "postNATDestinationIPv4Address", "src_xlt_port": "postNAPTSourceTransportPort",
	"dst_xlt_port": "postNAPTDestinationTransportPort", "nat_event_id": "natEvent", "ingress_vrf": "ingressVRFID",
	"t_event": "observationTimeMilliseconds",
}

// Nfdump returns the records that nfcapd has written to dir.
func Nfdump(dir string) ([]Record, error) {
	out, err := output("nfdump", "-R", dir, "-o", "json")
	if err != nil {
		return nil, err
	}
	var objects []object
	if err := json.Unmarshal([]byte(out), &objects); err != nil {
		return nil, fmt.Errorf("read nfdump's JSON: %w", err)
	}
	var list []Record
	for _, o := range objects {
		m := o.rename(nfdumpNames)
		for _, k := range []string{"flowStartMilliseconds", "flowEndMilliseconds", "observationTimeMilliseconds"} {
			if seconds, ms, ok := strings.Cut(m[k], "."); ok {
				// nfdump 1.7.1 prints the 6 ms of an observationTimeMilliseconds as ".6".
				m[k] = seconds + "." + ("000" + ms)[min(len(ms), 3):] + "Z"
			}
		}
		kind, _ := strconv.Atoi(o["icmp_type"])
		code, _ := strconv.Atoi(o["icmp_code"])
		if kind != 0 || code != 0 {
			m[icmpElement(m["protocolIdentifier"])] = strconv.Itoa(kind<<8 | code)
		}
		list = append(list, m)
	}
	return list, nil
}

func icmpElement(proto string) string {
	if proto == "58" {
		return "icmpTypeCodeIPv6"
	}
	return "icmpTypeCodeIPv4"
}

// nfacctdOwn are the elements that pmacct does not know: they are declared as primitives, in lower case.
var nfacctdOwn = []string{
	"reverseOctetDeltaCount field_type=29305:1 len=8", "reversePacketDeltaCount field_type=29305:2 len=8",
	"ingressVRFID field_type=234 len=4", "flowEndReason field_type=136 len=1", "flowId field_type=148 len=8",
	"natOriginatingAddressRealm field_type=229 len=1", "icmpTypeCodeIPv4 field_type=32 len=2",
	"icmpTypeCodeIPv6 field_type=139 len=2",
}

var nfacctdNames = func() map[string]string {
	names := map[string]string{
		"port_src": "sourceTransportPort", "port_dst": "destinationTransportPort", "ip_proto": "protocolIdentifier",
		"post_nat_ip_src": "postNATSourceIPv4Address", "post_nat_ip_dst": "postNATDestinationIPv4Address",
		"post_nat_port_src": "postNAPTSourceTransportPort", "post_nat_port_dst": "postNAPTDestinationTransportPort",
		"nat_event": "natEvent", "timestamp_start": "flowStartMilliseconds", "timestamp_end": "flowEndMilliseconds",
		"packets": "packetDeltaCount", "bytes": "octetDeltaCount",
	}
	for _, p := range nfacctdOwn {
		name, _, _ := strings.Cut(p, " ")
		names[strings.ToLower(name)] = name
	}
	return names
}()

// ConfigureNfacctd writes to dir a configuration for nfacctd, under which it listens on 127.0.0.1 and appends records
// to out each second, and returns its name.
func ConfigureNfacctd(dir string, port int, out string) (config string, err error) {
	var primitives, own string
	for _, p := range nfacctdOwn {
		name, field, _ := strings.Cut(p, " ")
		name = strings.ToLower(name)
		primitives += "name=" + name + " " + field + " semantics=u_int\n"
		own += ", " + name
	}
	primitivesFile := filepath.Join(dir, "primitives")
	if err := os.WriteFile(primitivesFile, []byte(primitives), 0o600); err != nil {
		return "", err
	}
	config = filepath.Join(dir, "nfacctd.conf")
	return config, os.WriteFile(config, []byte(strings.Join([]string{
		"daemonize: false", "nfacctd_ip: 127.0.0.1", "nfacctd_port: " + strconv.Itoa(port), "plugins: print",
		"print_refresh_time: 1", "print_output: json", "print_output_file: " + out, "print_output_file_append: true",
		"timestamps_since_epoch: true", "aggregate_primitives: " + primitivesFile,
		"aggregate: src_host, dst_host, src_port, dst_port, proto, post_nat_src_host, post_nat_dst_host, " +
			"post_nat_src_port, post_nat_dst_port, nat_event, timestamp_start, timestamp_end" + own, "",
	}, "\n")), 0o600)
}

// protocols are the names that nfacctd prints, from /etc/protocols.
var protocols = map[string]string{
	"icmp": "1", "tcp": "6", "udp": "17", "gre": "47", "ipv6-icmp": "58", "sctp": "132", "udplite": "136",
}

// Nfacctd returns the records that nfacctd has written to out.
func Nfacctd(out string) ([]Record, error) {
	text, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	var list []Record
	for line := range strings.Lines(string(text)) {
		var o object
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return nil, fmt.Errorf("read nfacctd's JSON: %w", err)
		}
		m := o.rename(nfacctdNames)
		for key, end := range map[string]string{"ip_src": "source", "ip_dst": "destination"} {
			a, err := netip.ParseAddr(o[key])
			switch {
			case err != nil:
			case a.Is4():
				m[end+"IPv4Address"] = a.String()
			default:
				m[end+"IPv6Address"] = a.String()
			}
		}
		for _, k := range []string{"flowStartMilliseconds", "flowEndMilliseconds"} {
			if seconds, micros, ok := strings.Cut(m[k], "."); ok {
				s, _ := strconv.ParseInt(seconds, 10, 64)
				us, _ := strconv.ParseInt(micros, 10, 64)
				m[k] = time.Unix(s, us*1000).UTC().Format(millis)
			}
		}
		if n, ok := protocols[m["protocolIdentifier"]]; ok {
			m["protocolIdentifier"] = n
		}
		list = append(list, m)
	}
	return list, nil
}

// IPFIXDump returns the records in a file of messages as ipfixDump shows them, and all that it prints. Where an element
// comes twice in a record, the second has "_2" behind its name. Records of options are among them.
func IPFIXDump(file string) (list []Record, out string, err error) {
	out, err = output("ipfixDump", "--rfc5610", "--data", "--hexdump=16", "--in", file)
	for part := range strings.SplitSeq(out, "--- data record ") {
		m := Record{}
		for line := range strings.Lines(part) {
			number, rest, ok := strings.Cut(strings.TrimSpace(line), ")")
			name, value, ok2 := strings.Cut(rest, " : ")
			if !ok || !ok2 || !strings.HasPrefix(number, "(") {
				continue
			}
			name = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(name), "(S)"))
			value = strings.TrimSpace(value)
			if strings.HasSuffix(name, "Milliseconds") {
				value = strings.Replace(value, " ", "T", 1) + "Z"
			}
			if a, err := netip.ParseAddr(value); err == nil { // IPv6 is shown with leading zeros
				value = a.String()
			}
			if name == "ctHelperName" {
				_, value, _ = strings.Cut(value, ") ")
			}
			if m[name] != "" {
				name += "_2"
			}
			if value != "" && value != "0" {
				m[name] = value
			}
		}
		if len(m) > 0 {
			list = append(list, m)
		}
	}
	return list, out, err
}

// Python is the interpreter that Debian's python3-ipfix is for.
const Python = "/usr/bin/python3"

const pythonReader = `
import json, sys, ipfix.ie, ipfix.reader
ipfix.ie.use_iana_default()
ipfix.ie.use_5103_default()
for record in ipfix.reader.from_stream(open(sys.argv[1], "rb")).namedict_iterator():
    print(json.dumps({name: str(value) for name, value in record.items()}))
`

// PythonIPFIX returns the records in a file of messages as python-ipfix shows them, which are those of options as well.
func PythonIPFIX(file string) ([]Record, error) {
	out, err := output(Python, "-c", pythonReader, file)
	if err != nil {
		return nil, err
	}
	var list []Record
	for line := range strings.Lines(out) {
		var o object
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return nil, err
		}
		for name, v := range o {
			if strings.HasSuffix(name, "Milliseconds") {
				v = strings.Replace(v, " ", "T", 1)
				if !strings.Contains(v, ".") { // Python leaves out the fraction that is zero
					v += ".000000"
				}
				o[name] = strings.TrimSuffix(v, "000") + "Z"
			}
		}
		list = append(list, Pick(Record(o), slices.Collect(maps.Keys(o))))
	}
	return list, nil
}

// Pcap writes messages as UDP datagrams to a file for Wireshark: libpcap's format with bare IPv4 packets.
func Pcap(file string, messages [][]byte) error {
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	b = append(b, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, 65535)
	b = binary.LittleEndian.AppendUint32(b, 101) // LINKTYPE_RAW
	for _, m := range messages {
		packet := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1, 0xc0, 0, 0x12, 0x83, 0, 0, 0, 0}
		packet = append(packet, m...)
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		binary.BigEndian.PutUint16(packet[24:], uint16(len(packet)-20))
		b = binary.LittleEndian.AppendUint32(b, uint32(time.Now().Unix()))
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(packet)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(packet)))
		b = append(b, packet...)
	}
	return os.WriteFile(file, b, 0o600)
}

// TsharkNotes returns what tshark shows of the packets in a capture that have an expert note of severity warning or
// above, and how many packets are IPFIX messages to it.
func TsharkNotes(pcap string) (notes string, messages int, err error) {
	args := []string{"-r", pcap, "-d", "udp.port==4739,cflow", "-Y"}
	if notes, err = output("tshark", append(args, "_ws.expert.severity >= 0x00600000", "-V")...); err != nil {
		return "", 0, err
	}
	decoded, err := output("tshark", append(args, "cflow.version == 10")...)
	return notes, strings.Count(decoded, "\n"), err
}

var tsharkNames = map[string]string{
	"cflow.abstimestart": "flowStartMilliseconds", "cflow.abstimeend": "flowEndMilliseconds",
	"cflow.observation_time_milliseconds": "observationTimeMilliseconds",
	"cflow.srcaddr":                       "sourceIPv4Address", "cflow.dstaddr": "destinationIPv4Address",
	"cflow.srcaddrv6": "sourceIPv6Address", "cflow.dstaddrv6": "destinationIPv6Address",
	"cflow.srcport": "sourceTransportPort", "cflow.dstport": "destinationTransportPort",
	"cflow.post_natsource_ipv4_address":         "postNATSourceIPv4Address",
	"cflow.post_natdestination_ipv4_address":    "postNATDestinationIPv4Address",
	"cflow.post_nat_source_ipv6_address":        "postNATSourceIPv6Address",
	"cflow.post_nat_destination_ipv6_address":   "postNATDestinationIPv6Address",
	"cflow.post_naptsource_transport_port":      "postNAPTSourceTransportPort",
	"cflow.post_naptdestination_transport_port": "postNAPTDestinationTransportPort",
	"cflow.octets":                        "octetDeltaCount",
	"cflow.packets":                       "packetDeltaCount",
	"cflow.octets_2":                      "reverseOctetDeltaCount",
	"cflow.packets_2":                     "reversePacketDeltaCount",
	"cflow.flow_id":                       "flowId",
	"cflow.ingress_vrfid":                 "ingressVRFID",
	"cflow.protocol":                      "protocolIdentifier",
	"cflow.flow_end_reason":               "flowEndReason",
	"cflow.nat_event":                     "natEvent",
	"cflow.nat_originating_address_realm": "natOriginatingAddressRealm",
	"cflow.icmp_type_code_ipv4":           "icmpTypeCodeIPv4",
	"cflow.icmp_ipv6_type":                "icmpTypeCodeIPv6",
}

// pdml is a field of tshark's XML, with the fields in it.
type pdml struct {
	Name   string `xml:"name,attr"`
	Show   string `xml:"show,attr"`
	Fields []pdml `xml:",any"`
}

// records returns each flow below f as its fields' names and values; a name that comes again gets "_2".
func (f *pdml) records() (list []object) {
	if strings.HasPrefix(f.Show, "Flow ") {
		m := object{}
		f.flatten(m)
		return append(list, m)
	}
	for i := range f.Fields {
		list = append(list, f.Fields[i].records()...)
	}
	return list
}

func (f *pdml) flatten(m object) {
	for _, field := range f.Fields {
		name := field.Name
		if m[name] != "" {
			name += "_2"
		}
		m[name] = field.Show
		field.flatten(m)
	}
}

// Tshark returns the records in a capture; among them are those of options. Of an ICMPv6 type and code it shows the
// type, which is returned with the code 0.
func Tshark(pcap string) ([]Record, error) {
	out, err := output("tshark", "-r", pcap, "-d", "udp.port==4739,cflow", "-T", "pdml")
	if err != nil {
		return nil, err
	}
	var capture pdml
	if err := xml.Unmarshal([]byte(out), &capture); err != nil {
		return nil, fmt.Errorf("read tshark's XML: %w", err)
	}
	var list []Record
	for _, o := range capture.records() {
		m := o.rename(tsharkNames)
		for name, v := range m {
			if at, err := time.Parse("Jan _2, 2006 15:04:05.000000000 MST", v); err == nil {
				m[name] = at.UTC().Format(millis)
			}
		}
		if n, err := strconv.ParseUint(m["icmpTypeCodeIPv4"], 0, 16); err == nil {
			m["icmpTypeCodeIPv4"] = strconv.FormatUint(n, 10)
		}
		if n, err := strconv.ParseUint(m["icmpTypeCodeIPv6"], 0, 8); err == nil {
			m["icmpTypeCodeIPv6"] = strconv.FormatUint(n<<8, 10)
		}
		list = append(list, m)
	}
	return list, nil
}
