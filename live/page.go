//go:build !small

package live

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/printable"
)

// The page is made by the daemon, charts and all, so that it needs no scripts; the script fetches it anew and brings
// what differs into the one that is shown. It shows public addresses and ports, and neither subscribers nor whom they
// talk to: who may see the metrics need not see those. The socket, by way of top, shows them.
var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	// Only the daemon makes pages, and every command starts.
	pageTemplate = sync.OnceValue(func() *template.Template {
		return template.Must(template.New("page").Funcs(template.FuncMap{
			"group": group, "rate": rate, "percent": percent, "size": size, "age": age, "text": printable.Text,
			"wide": func(n uint32) uint64 { return uint64(n) },
		}).Parse(pageHTML))
	})

	// Nothing but what stands in the page itself may run or be loaded, and nobody may frame it.
	pagePolicy = fmt.Sprintf("default-src 'none'; script-src '%s'; style-src '%s'; img-src data:; connect-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'", hashOf(pageJS), hashOf(pageCSS))
)

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Page answers with the page.
func (s *Server) Page(w http.ResponseWriter, _ *http.Request) {
	v := s.history.view()
	v.History, v.Talkers = s.history.past(), s.talkers.look(v.Time)
	var b bytes.Buffer
	if err := pageTemplate().Execute(&b, newPage(&v)); err != nil {
		s.o.Log.Error("make the page", zap.Error(err))
		http.Error(w, "the page cannot be made", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(b.Bytes())
}

// page is what the template gets.
type page struct {
	*View
	CSS template.CSS
	JS  template.JS

	Read, Gaps          uint64
	Full                float64
	Clock, Unwanted     string
	Events, Lost, Table chart
	Out                 []pageOutput
	AllGaps             []pageGap
}

type pageOutput struct {
	*monitor.Output
	LostRecords           uint64
	Full, Rate            float64
	Lag, Filtered, Kept   string
	Error                 string
	Holds, Keeps, Fails   string // of an archive
	Records, Queue, Waits chart
}

type pageGap struct {
	monitor.Gap
	Output, Ago string
}

func newPage(v *View) *page {
	p := &page{View: v, CSS: template.CSS(pageCSS), JS: template.JS(pageJS),
		Full:  fill(float64(v.Kernel.Entries), float64(v.Kernel.Limit)),
		Clock: v.Time.Format("2006-01-02 15:04:05 MST"), Unwanted: filtered(v.Rates.Filtered),
		Events: v.chart(1, func(p *Point) float64 { return p.Events }),
		Lost:   v.chart(1, func(p *Point) float64 { return p.Lost }),
		Table:  v.chart(1, func(p *Point) float64 { return p.Table }),
	}
	for _, n := range v.Reader.Events {
		p.Read += n
	}
	note := func(output string, gaps []monitor.Gap) (lost uint64) {
		for _, g := range gaps {
			lost += g.Lost
			if g.Gaps > 0 {
				p.Gaps += g.Gaps
				p.AllGaps = append(p.AllGaps, pageGap{g, output, age(v.Time.Sub(g.Last).Seconds()) + " ago"})
			}
		}
		return lost
	}
	note("all", v.Snapshot.Gaps)
	for i := range v.Outputs {
		o := &v.Outputs[i]
		of := func(value func(*OutputPoint) float64) func(*Point) float64 {
			return func(p *Point) float64 {
				for j := range p.Outputs {
					if p.Outputs[j].Name == o.Name {
						return value(&p.Outputs[j])
					}
				}
				return 0
			}
		}
		out := pageOutput{Output: o, LostRecords: note(o.Name, o.Gaps), Full: fill(float64(o.Used), float64(o.Max)),
			Rate: v.Rates.Outputs[o.Name], Lag: v.lag(o), Filtered: filtered(v.Rates.OutputsFiltered[o.Name]),
			Records: v.chart(1, of(func(p *OutputPoint) float64 { return p.Written })),
			Queue:   v.chart(1, of(func(p *OutputPoint) float64 { return p.Queue })),
			Waits:   v.chart(1, of(func(p *OutputPoint) float64 { return p.Age })),
		}
		if !o.KeptSince.IsZero() {
			out.Kept = age(v.Time.Sub(o.KeptSince).Seconds()) + ", to " + o.KeptSince.Format("2006-01-02 15:04:05")
		}
		if o.Error != "" {
			out.Error = age(v.Time.Sub(o.ErrorAt).Seconds()) + " ago: " + o.Error
		}
		if a, ok := archiveOf(o); ok {
			out.Holds, out.Keeps, out.Fails = a.holds(), a.keeps(), a.fails()
		}
		p.Out = append(p.Out, out)
	}
	return p
}

// chart is a line over the last five minutes, in a box of 100 by 30.
type chart struct {
	Line, Area string // points
	Peak       float64
}

const chartWidth, chartHeight = 100, 30

// chart draws a value of the history. top is the value at the upper edge, unless a larger one is there.
func (v *View) chart(top float64, value func(*Point) float64) chart {
	c := chart{}
	for i := range v.History {
		c.Peak = max(c.Peak, value(&v.History[i]))
	}
	top = max(top, c.Peak)
	var b strings.Builder
	first, last := 0.0, 0.0
	for i := range v.History {
		p := &v.History[i]
		ago := v.Time.Sub(p.Time)
		x := chartWidth * (1 - float64(ago)/float64(points*pointTime))
		if x < 0 || ago < 0 {
			continue
		}
		if b.Len() == 0 {
			first = x
		}
		last = x
		fmt.Fprintf(&b, "%.1f,%.1f ", x, chartHeight-1-(chartHeight-2)*min(value(p)/top, 1))
	}
	c.Line = b.String()
	if c.Line != "" {
		c.Area = fmt.Sprintf("%.1f,%d %s%.1f,%d", first, chartHeight, c.Line, last, chartHeight)
	}
	return c
}
