package format

import (
	"net/netip"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// exampleHost and exampleObserver are those of the examples in docs/json.md.
const (
	exampleHost     = "cgn1.example.net"
	exampleObserver = "b08dfa6083e7567a1921a715000001fb"
)

type example struct {
	name string
	rec  flow.Record
}

// tuple returns a tuple of addresses and ports, or what the protocol has in their place.
func tuple(p flow.Proto, src string, sport uint16, dst string, dport uint16) flow.Tuple {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	return flow.Tuple{
		Src: flow.AddrFrom(s), Dst: flow.AddrFrom(d), SrcPort: sport, DstPort: dport, Proto: p, V6: s.Is6(),
	}
}

// ns returns a time in nanoseconds since 1970.
func ns(s string) int64 {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t.UnixNano()
}

// examples are the records that docs/json.md shows, one or more of each event.
func examples() []example {
	const (
		tuples = flow.HasOrig | flow.HasReply
		common = tuples | flow.HasStatus | flow.HasID
		natted = flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed | flow.StatusSrcNAT |
			flow.StatusSrcNATDone | flow.StatusDstNATDone
	)
	control := tuple(flow.TCP, "10.64.3.7", 40112, "198.51.100.21", 21)
	return []example{
		{"destroy", flow.Record{
			Event: flow.EventDestroy, Has: common | flow.HasCounters | flow.HasTCP | flow.HasMark,
			Orig:         tuple(flow.TCP, "10.64.3.7", 51544, "198.51.100.80", 443),
			Reply:        tuple(flow.TCP, "198.51.100.80", 443, "192.0.2.33", 7211),
			OrigCounters: flow.Counters{Packets: 14, Bytes: 2211}, ReplyCounters: flow.Counters{Packets: 19, Bytes: 20733},
			Start: ns("2026-03-09T14:02:11.504113291Z"), Stop: ns("2026-03-09T14:04:36.118920404Z"),
			Stamp: ns("2026-03-09T14:04:36.118924001Z"), Received: ns("2026-03-09T14:04:36.119330112Z"),
			Status: natted | flow.StatusDying, ID: 3120755298, Mark: 16, State: flow.TCPTimeWait,
		}},
		{"destroy of a ping", flow.Record{
			Event: flow.EventDestroy, Has: common,
			Orig:  tuple(flow.ICMP, "10.64.3.7", 777, "198.51.100.80", 8<<8),
			Reply: tuple(flow.ICMP, "198.51.100.80", 64110, "192.0.2.33", 0),
			Start: ns("2026-03-09T14:02:11.5Z"), Stop: ns("2026-03-09T14:02:41.6Z"), Received: ns("2026-03-09T14:02:41.6001Z"),
			Status: natted | flow.StatusDying, ID: 551,
		}},
		{"destroy of a GRE flow", flow.Record{
			Event: flow.EventDestroy, Has: common,
			Orig:     tuple(flow.GRE, "10.64.3.7", 4096, "198.51.100.90", 128),
			Reply:    tuple(flow.GRE, "198.51.100.90", 128, "192.0.2.33", 5001),
			Received: ns("2026-03-09T14:02:41.6001Z"), Status: natted | flow.StatusDying, ID: 552,
		}},
		{"destroy of an FTP data flow", flow.Record{
			Event: flow.EventDestroy, Has: common | flow.HasTCP | flow.HasZone,
			Orig:  tuple(flow.TCP, "10.64.3.7", 40113, "198.51.100.21", 50021),
			Reply: tuple(flow.TCP, "198.51.100.21", 50021, "192.0.2.33", 40113),
			Start: ns("2026-03-09T14:02:11.5Z"), Stop: ns("2026-03-09T14:02:15.6Z"), Received: ns("2026-03-09T14:02:15.6001Z"),
			Status: natted | flow.StatusExpected | flow.StatusDying, ID: 553, Zone: 7, State: flow.TCPTimeWait,
			Extra: &flow.Extra{
				Helper: flow.NameFrom("ftp"), Master: control, HasMaster: true, HasLabels: true,
				Labels: [16]byte{0: 0x02, 9: 0x80}, SecCtx: "system_u:object_r:unlabeled_t:s0",
			},
		}},
		{"destroy between two zones", flow.Record{
			Event: flow.EventDestroy, Has: common | flow.HasTimeout | flow.HelperUnknown,
			Orig: func() flow.Tuple {
				t := tuple(flow.UDP, "2001:db8:64::7", 5353, "2001:db8::53", 53)
				t.Zone, t.HasZone = 11, true
				return t
			}(),
			Reply: func() flow.Tuple {
				t := tuple(flow.UDP, "2001:db8::53", 53, "2001:db8:64::7", 5353)
				t.Zone, t.HasZone = 12, true
				return t
			}(),
			Start: ns("2026-03-09T23:59:59.999999999Z"), Stop: ns("2026-03-10T00:00:30.000000001Z"),
			Received: ns("2026-03-10T00:00:30.0004Z"), Status: natted&^0x1f0 | flow.StatusHelper | flow.StatusDying,
			ID: 554, Timeout: 29,
		}},
		{"destroy in another network namespace", flow.Record{
			Event: flow.EventDestroy, Has: common,
			Orig:  tuple(flow.UDP, "10.64.3.7", 5353, "198.51.100.53", 53),
			Reply: tuple(flow.UDP, "198.51.100.53", 53, "192.0.2.33", 5353),
			Start: ns("2026-03-09T14:02:11.5Z"), Stop: ns("2026-03-09T14:02:41.6Z"), Received: ns("2026-03-09T14:02:41.6001Z"),
			Status: natted | flow.StatusDying, ID: 561, Netns: flow.HoldNetns(3, "blue"),
		}},
		{"destroy of an SCTP flow", flow.Record{
			Event: flow.EventDestroy, Has: common | flow.HasSCTP,
			Orig:  tuple(flow.SCTP, "10.64.3.7", 3868, "198.51.100.80", 3868),
			Reply: tuple(flow.SCTP, "10.1.1.1", 3869, "10.64.3.7", 3868),
			Start: ns("2026-03-09T14:02:11.5Z"), Stop: ns("2026-03-09T14:12:11.5Z"),
			Received: ns("2026-03-09T14:12:11.6001Z"),
			Status:   flow.StatusConfirmed | flow.StatusDstNAT, ID: 555, State: 4,
		}},
		{"new", flow.Record{
			Event: flow.EventNew, Has: common | flow.HasTCP | flow.HasTimeout,
			Orig: control, Reply: tuple(flow.TCP, "198.51.100.21", 21, "192.0.2.33", 40112),
			Stamp: ns("2026-03-09T14:02:09.1Z"), Received: ns("2026-03-09T14:02:09.1002Z"),
			Status: flow.StatusConfirmed | flow.StatusSrcNAT, ID: 557, State: 1, Timeout: 120,
			Extra: &flow.Extra{Helper: flow.NameFrom("ftp")},
		}},
		{"update", flow.Record{
			Event: flow.EventUpdate, Has: common | flow.HasDCCP | flow.HasTimeout,
			Orig:     tuple(flow.DCCP, "10.64.3.7", 5001, "198.51.100.80", 5001),
			Reply:    tuple(flow.DCCP, "198.51.100.80", 5001, "10.64.3.7", 5001),
			Received: ns("2026-03-09T14:02:09.1002Z"), Status: flow.StatusConfirmed | 1<<20, ID: 558, State: 4, Timeout: 480,
		}},
		{"open", flow.Record{
			Event: flow.EventOpen, Has: common | flow.HasCounters | flow.HasTimeout,
			Orig:         tuple(89, "10.64.3.7", 0, "198.51.100.80", 0),
			Reply:        tuple(89, "198.51.100.80", 0, "10.64.3.7", 0),
			OrigCounters: flow.Counters{Packets: 40, Bytes: 4000}, ReplyCounters: flow.Counters{},
			Start: ns("2026-03-01T04:00:00.000000007Z"), Received: ns("2026-03-09T14:02:09.1002Z"),
			Status: flow.StatusConfirmed, ID: 559, Timeout: 580,
		}},
		{"expect_new", flow.Record{
			Event: flow.EventExpectNew, Has: tuples | flow.HasID | flow.HasTimeout,
			Orig:     tuple(flow.TCP, "198.51.100.21", 0, "192.0.2.33", 40113),
			Reply:    tuple(flow.TCP, "0.0.0.0", 0, "255.255.255.255", 65535),
			Received: ns("2026-03-09T14:02:10.7Z"), ID: 17, Timeout: 300,
			Extra: &flow.Extra{Helper: flow.NameFrom("ftp"), Master: control, HasMaster: true, Flags: 1, Class: 0},
		}},
		{"expect_destroy", flow.Record{
			Event: flow.EventExpectDestroy, Has: tuples | flow.HasID,
			Orig:     tuple(flow.TCP, "198.51.100.21", 0, "192.0.2.33", 40113),
			Reply:    tuple(flow.TCP, "255.255.255.255", 0, "255.255.255.255", 65535),
			Received: ns("2026-03-09T14:02:11.2Z"), ID: 17,
			Extra: &flow.Extra{Helper: flow.NameFrom("ftp"), Master: control, HasMaster: true},
		}},
		{"destroy of a flow during which the clock was set, by hand", flow.Record{
			Event: flow.EventDestroy, Has: common | flow.Unsynchronized | flow.Stepped,
			Orig:  tuple(flow.UDP, "10.64.3.7", 5353, "198.51.100.53", 53),
			Reply: tuple(flow.UDP, "198.51.100.53", 53, "192.0.2.33", 5353),
			Start: ns("2026-03-09T13:00:00.25Z"), Stop: ns("2026-03-09T14:02:11.5Z"), Received: ns("2026-03-09T14:02:11.5003Z"),
			Status: natted | flow.StatusDying, ID: 560,
		}},
		{"gap", flow.Record{
			Event: flow.EventGap, Start: ns("2026-03-09T14:02:11Z"), Stop: ns("2026-03-09T14:02:12.5Z"),
			Received: ns("2026-03-09T14:02:12.5Z"),
			Extra: &flow.Extra{Gap: flow.Gap{
				Cause: flow.CauseDiskFull, Lost: 4096, LostKnown: true, Output: "jsonl:/var/log/ctlogd/flows.jsonl",
			}},
		}},
		{"gap of unknown size", flow.Record{
			Event: flow.EventGap, Start: ns("2026-03-09T14:05:00Z"), Stop: ns("2026-03-09T14:05:09.5Z"),
			Received: ns("2026-03-09T14:05:09.5Z"),
			Extra:    &flow.Extra{Gap: flow.Gap{Cause: flow.CauseDowntime}},
		}},
		{"checkpoint", flow.Record{
			Event: flow.EventCheckpoint, Received: ns("2026-03-09T14:00:00.25Z"),
			Extra: &flow.Extra{Note: &flow.Note{
				Output: "archive:/var/log/ctlogd/archive", Origin: "ctlogd archive cgn1.example.net", Lines: 41,
				Hash: strings.Repeat("9f2c4be1", 8),
				Text: "ctlogd archive cgn1.example.net\n41\nnyxL4Z8sS+GfLEvhnyxL4Z8sS+GfLEvhnyxL4Z8sS+E=\n" +
					"rows 42 71303168 A9WnyAPVp8gD1afIA9WnyAPVp8gD1afIA9WnyAPVp8g=\ntime 2026-03-09T14:00:00.250000000Z\n" +
					"key cgn1.example.net+33fded32+AQpnKDsQ5sSUuZXvbDJ+G6fN8a8fAjGFI61NktLeyOqw\n\n" +
					"— cgn1.example.net M/3tMj8PzkXygAkiz6Z3fpgw97RM3hzLHKwKEccPEAAFWvv3OIr3wBy99DJSrhX8bVJX2U2sd+9dik2X3Uj7b/E9WA8=",
			}},
		}},
	}
}
