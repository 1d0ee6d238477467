package whois

import (
	"strings"
	"testing"
	"time"
)

const acns = `<?xml version="1.0" encoding="iso-8859-1"?>
<Infringement xmlns="http://www.acns.net/ACNS" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<Case><ID>A1234567</ID><Status>Open</Status><Severity>Normal</Severity></Case>
<Complainant><Entity>Example Pictures</Entity></Complainant>
<Service_Provider><Entity>Example ISP</Entity></Service_Provider>
<Source><TimeStamp>2026-11-26T12:03:07Z</TimeStamp><IP_Address>203.0.113.5</IP_Address><Port>40000</Port><Type>BitTorrent</Type></Source>
<Content><Item><TimeStamp>2020-01-01T00:00:00Z</TimeStamp><Title>A film</Title></Item></Content>
</Infringement>`

const xarf = "From: reports@example.org\r\nTo: abuse@example.net\r\nSubject: abuse report about 203.0.113.5\r\nMIME-Version: 1.0\r\nX-XARF: PLAIN\r\n" +
	"Content-Type: multipart/mixed; boundary=\"b1\"\r\n\r\n--b1\r\nContent-Type: text/plain\r\n\r\nHello, see below.\r\n--b1\r\n" +
	"Content-Type: text/plain; charset=utf-8; name=\"report.txt\"\r\n\r\n---\r\nReported-From: reports@example.org\r\nCategory: abuse\r\nReport-ID: 77@example.org\r\n" +
	"Date: Thu, 26 Nov 2026 12:03:07 +0000\r\nSource: 203.0.113.5\r\nSource-Type: ipv4\r\nSource-Port: 40000\r\nDestination: 198.51.100.80\r\nDestination-Port: 22\r\n--b1--\r\n"

func TestParseBatch(t *testing.T) {
	const at = "203.0.113.5:40000 2026-11-26T12:03:07.000000000Z"
	for name, c := range map[string]struct {
		text string
		want []string // address, time, and what else
	}{
		"lines":                             {"# from the mail\n203.0.113.5 40000 2026-11-26 12:03:07 UTC\n\n203.0.113.5:40000 2026-11-26T12:03:07Z dst=198.51.100.80:443 proto=tcp\n", []string{at, at + " 198.51.100.80:443 tcp"}},
		"no port":                           {"203.0.113.5 2026-11-26 12:03:07 UTC\n", []string{"203.0.113.5 2026-11-26T12:03:07.000000000Z"}},
		"unix":                              {"203.0.113.5 40000 1795694587\n", []string{at}},
		"mail's date":                       {"203.0.113.5 40000 Thu, 26 Nov 2026 13:03:07 +0100\n", []string{at}},
		"IPv6":                              {"[2001:db8::5]:40000 2026-11-26T12:03:07Z\n2001:db8::5 40000 2026-11-26T12:03:07Z\n", []string{"[2001:db8::5]:40000 2026-11-26T12:03:07.000000000Z", "[2001:db8::5]:40000 2026-11-26T12:03:07.000000000Z"}},
		"CSV":                               {"Case,Source IP,Source Port,Timestamp (UTC),Destination IP,Destination Port,Protocol\nT1,203.0.113.5,40000,2026-11-26 12:03:07,198.51.100.80,443,TCP\n", []string{at + " 198.51.100.80:443 tcp T1"}},
		"CSV, a space in the head's first":  {"Source IP;Source Port;Timestamp;Time Zone;Destination IP\n203.0.113.5;40000;2026-11-26 13:03:07;CET;198.51.100.80\n", []string{at + " 198.51.100.80"}},
		"CSV, no head":                      {"203.0.113.5,40000,2026-11-26 12:03:07 UTC\r\n", []string{at}},
		"semicolons":                        {"\xef\xbb\xbfip;port;time;zone\n203.0.113.5;40000;\"2026-11-26 13:03:07\";CET\n", []string{at}},
		"tabs":                              {"ip\tport\ttime\n203.0.113.5\t40000\t2026-11-26T12:03:07Z\n", []string{at}},
		"ACNS":                              {acns, []string{at + " A1234567"}},
		"ACNS, mailed":                      {"Dear Sirs,\n\nplease see below.\n\n- ----Start ACNS XML\n" + acns + "\n- ----End ACNS XML\n", []string{at + " A1234567"}},
		"X-ARF mail":                        {xarf, []string{at + " 198.51.100.80:22 77@example.org"}},
		"X-ARF YAML":                        {"---\nSource: 203.0.113.5\nSource-Port: 40000\nDate: 2026-11-26T12:03:07Z\n", []string{at}},
		"X-ARF 3":                           {`{"Version":"3","ReporterInfo":{"ReporterOrg":"x"},"Report":{"ReportClass":"Activity","SourceIp":"203.0.113.5","SourcePort":40000,"Date":"2026-11-26T12:03:07Z"}}`, []string{at}},
		"X-ARF 4":                           {`{"xarf_version":"4.0.0","report_id":"r1","timestamp":"2026-11-26T12:03:07Z","source_identifier":"203.0.113.5","source_port":40000,"protocol":"tcp"}`, []string{at + " tcp r1"}},
		"X-ARF 4, with a first time":        {`{"xarf_version":"4.0.0","report_id":"r2","timestamp":"2026-11-26T12:03:07Z","reporter":{"org":"x","contact":"a@example.org"},"source_identifier":"203.0.113.5","source_port":40000,"category":"connection","type":"login_attack","destination_ip":"198.51.100.80","destination_port":22,"protocol":"tcp","first_seen":"2026-11-26T10:00:00Z"}`, []string{at + " 198.51.100.80:22 tcp r2"}},
		"JSON lines":                        {`{"ip":"203.0.113.5","port":40000,"time":"2026-11-26T12:03:07Z"}` + "\n" + `{"ip":"203.0.113.5","port":"40000","time":1795694587}`, []string{at, at}},
		"faults":                            {"203.0.113.5 0 2026-11-26T12:03:07Z\n203.0.113.5 40000 yesterday\n999.1.1.1 4 2026-11-26T12:03:07Z\n203.0.113.5 40000 2036-11-26T12:03:07Z\n203.0.113.5 40000\n", []string{"! is no port", "! no time that can be read", "! is no address", "! lies in the future", "! no time"}},
		"ARF":                               {"From: a@example.org\nContent-Type: multipart/report; report-type=feedback-report; boundary=x\nMIME-Version: 1.0\n\n--x\nContent-Type: text/plain\n\nprose\n--x\nContent-Type: message/feedback-report\n\nFeedback-Type: abuse\nSource-IP: 203.0.113.5\nSource-Port: 40000\nArrival-Date: Thu, 26 Nov 2026 12:03:07 GMT\n--x--\n", []string{at}},
		"X-ARF, the port that was attacked": {"---\nSource: 203.0.113.5\nPort: 22\nDate: 2026-11-26T12:03:07Z\n", []string{"203.0.113.5 2026-11-26T12:03:07.000000000Z"}},
		"a source beside another":           {`{"ip":"198.51.100.80","port":22,"source_ip":"203.0.113.5","source_port":40000,"time":"2026-11-26T12:03:07Z"}`, []string{at}},
		"date and time":                     {"date,time,ip,port\n2026-11-26,12:03:07,203.0.113.5,40000\n26.11.2026,12:03:07 UTC,203.0.113.5,40000\n", []string{at, at}},
		"ACNS, mailed, encoded": {"From: a@example.org\nMIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\nDear Sirs,\n" +
			strings.ReplaceAll(acns, "=", "=3D") + "\nend\n", []string{at + " A1234567"}},
		"prose, not read": {"From: a@example.org\nMIME-Version: 1.0\nContent-Type: text/plain\n\nHello 203.0.113.5,\n203.0.113.5 is bad\n203.0.113.5:40000 2026-11-26 12:03:07 XYZ\n203.0.113.5 40000 26.11.2026 13:03:07 MEZ\n",
			[]string{"! the zone \"XYZ\" is not known", at}},
		"base64": {"From: a@example.org\nMIME-Version: 1.0\nContent-Type: application/json\nContent-Transfer-Encoding: base64\n\neyJpcCI6IjIwMy4wLjExMy41IiwicG9ydCI6NDAwMDAsInRpbWUiOiIyMDI2LTExLTI2VDEyOjAzOjA3WiJ9\n", []string{at}},
		"prose":  {"From: a@example.org\nMIME-Version: 1.0\nContent-Type: text/plain\n\nHello,\nthese attacked us:\n203.0.113.5:40000 2026-11-26T12:03:07Z\nbye\n", []string{at}},
	} {
		items, err := ParseBatch([]byte(c.text), BatchOptions{Now: testNow, Zone: time.UTC})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(items) != len(c.want) {
			t.Errorf("%s: %d questions, want %d: %+v", name, len(items), len(c.want), items)
			continue
		}
		for i, it := range items {
			if want, fault := strings.CutPrefix(c.want[i], "! "); fault {
				if it.Err == nil || !strings.Contains(it.Err.Error(), want) {
					t.Errorf("%s: %q: error %v, want %q", name, it.Line, it.Err, want)
				}
				continue
			}
			if it.Err != nil {
				t.Errorf("%s: %q: %v", name, it.Line, it.Err)
				continue
			}
			q := it.Question
			got := q.Public.String() + " " + stamp(q.From)
			if q.Dst.Addr.IsValid() {
				got += " " + q.Dst.String()
			}
			if q.HasProto {
				got += " " + q.Proto.String()
			}
			if q.Case != "" {
				got += " " + q.Case
			}
			if got != c.want[i] {
				t.Errorf("%s: %s, want %s", name, got, c.want[i])
			}
		}
	}
	for _, text := range []string{"", "\n# nothing\n", "{}x", "<a></a>", "From: a@b\nMIME-Version: 1.0\n\nprose alone\n"} {
		items, err := ParseBatch([]byte(text), BatchOptions{Now: testNow, Zone: time.UTC})
		if err == nil && items[0].Err == nil {
			t.Errorf("%q: %+v", text, items)
		}
	}
}

func FuzzBatch(f *testing.F) {
	for _, s := range []string{acns, xarf, "203.0.113.5 40000 2026-11-26 12:03:07 UTC\n", "ip,port,time\n203.0.113.5,4,1795694587\n", `[{"ip":"1.2.3.4","time":"now"}]`,
		"---\nSource: 203.0.113.5\nDate: now\n", "\"a\nip;\"", "<Infringement><Source><Port>"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		items, err := ParseBatch(text, BatchOptions{Now: testNow, Zone: time.UTC})
		if err == nil && len(items) == 0 {
			t.Error("neither questions nor an error")
		}
		for _, i := range items {
			if i.Err == nil && i.Question.Validate(testNow) != nil || (i.Err == nil) == (i.Question == nil) && i.Err == nil {
				t.Errorf("%+v", i)
			}
		}
	})
}

func TestParseEnd(t *testing.T) {
	for s, want := range map[string]string{
		"203.0.113.5": "203.0.113.5", "203.0.113.5:40000": "203.0.113.5:40000", "[2001:DB8::5]:40000": "[2001:db8::5]:40000", "2001:db8::5": "2001:db8::5",
		"[2001:db8::5]": "2001:db8::5", "::ffff:203.0.113.5": "203.0.113.5",
		"203.0.113.5:0": "! nobody has port 0", "203.0.113.5:65536": "! out of range", "203.0.113.5:http": "! is no port", "fe80::1%eth0": "! leave out the zone",
		"example.net": "! is no address", "": "! is no address", "203.0.113": "! is no address", "203.0.113.5/24": "! is no address",
	} {
		e, err := ParseEnd(s)
		if text, fault := strings.CutPrefix(want, "! "); fault {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%q: %v, error %v, want %q", s, e, err, text)
			}
		} else if err != nil || e.String() != want {
			t.Errorf("%q: %v, error %v, want %s", s, e, err, want)
		}
	}
}
