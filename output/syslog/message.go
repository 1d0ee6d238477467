package syslog

import (
	"encoding/hex"
	"os"
	"slices"
	"strconv"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// composer appends whole messages (RFC 5424, section 6):
//
//	<PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID [SD-ID flow_id="..."] MSG
//
// MSGID is the event's name. It is for one goroutine.
type composer struct {
	enc      format.Encoder
	observer format.ObserverKey
	clock    format.Clock

	pri    [2]string // up to the time: of records, and of gaps
	middle [len(flow.EventNames)]string
	sd     string // what begins the structured data; "" for none

	fields [2][len(flow.EventNames)]string // what the journal gets before the message: of records, and of gaps
}

func newComposer(c *Config, enc format.Encoder, host, observer string) composer {
	facility, severity := slices.Index(Facilities, c.Facility), slices.Index(Severities, c.Severity)
	m := composer{enc: enc, observer: format.NewObserverKey(observer)}
	warning := min(severity, slices.Index(Severities, "warning"))
	for i, severity := range []int{severity, warning} {
		m.pri[i] = "<" + strconv.Itoa(facility*8+severity) + ">1 "
		for event, name := range flow.EventNames {
			m.fields[i][event] = "PRIORITY=" + strconv.Itoa(severity) + "\nSYSLOG_FACILITY=" + strconv.Itoa(facility) +
				"\nSYSLOG_IDENTIFIER=" + printable(c.AppName, 48) + "\nCTLOGD_EVENT=" + name + "\n"
		}
	}
	name := "-"
	if host != "" {
		name = printable(host, 255)
	}
	for event, id := range flow.EventNames {
		if id == "" {
			id = "-"
		}
		m.middle[event] = " " + name + " " + printable(c.AppName, 48) + " " + strconv.Itoa(os.Getpid()) + " " + id + " "
	}
	if c.SDID != "none" && observer != "" {
		m.sd = "[" + c.SDID + ` flow_id="`
	}
	return m
}

// append appends the message of r. It holds no newline.
func (m *composer) append(b []byte, r *flow.Record) []byte {
	pri := 0
	if r.Event == flow.EventGap {
		pri = 1
	}
	now, _ := r.Time()
	b = m.clock.AppendMicros(append(b, m.pri[pri]...), now)
	b = append(b, m.middle[r.Event%flow.Event(len(flow.EventNames))]...)
	id, ok := [16]byte{}, false
	if m.sd != "" {
		id, ok = format.FlowID(m.observer, r)
	}
	if ok {
		b = append(hex.AppendEncode(append(b, m.sd...), id[:]), `"] `...)
	} else {
		b = append(b, "- "...)
	}
	return m.enc.Append(b, r)
}

// appendFields appends r as the journal's native protocol has it: KEY=VALUE and a newline, for values without one.
func (m *composer) appendFields(b []byte, r *flow.Record) []byte {
	pri := 0
	if r.Event == flow.EventGap {
		pri = 1
	}
	b = append(b, m.fields[pri][r.Event%flow.Event(len(flow.EventNames))]...)
	if id, ok := format.FlowID(m.observer, r); ok && m.sd != "" {
		b = append(hex.AppendEncode(append(b, "CTLOGD_FLOW_ID="...), id[:]), '\n')
	}
	return append(m.enc.Append(append(b, "MESSAGE="...), r), '\n')
}
