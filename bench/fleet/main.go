// Command fleet computes what a fleet of firewalls needs: Kafka's partitions and disk, ClickHouse's nodes and disk, the lake,
// and what one whois costs in each. Its figures are what bench/archive.sh, bench/clickhouse.sh and Kafka's benchmark printed, in
// bench/fleet/measured or in files of yours; its assumptions are flags, and are printed. It measures nothing.
//
//	go run ./bench/fleet -firewalls 20 -rate 20000 -days 400
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strconv"
	"text/tabwriter"
)

// fleet is what is planned.
type fleet struct {
	firewalls, rate, days  int
	hotDays, kafkaHours    int
	kafkaCopies, hotCopies int
	cores                  int
	disk, busy, full       float64 // TB; parts of 1
	segment                int     // records
	checkpointHours        float64
}

// measured is what the benchmarks have printed.
type measured struct {
	segment, rowLog float64 // bytes a record
	append, seal    float64 // ns of CPU a record
	bounded, opened float64 // ms of CPU of a whois within two hours, and segments opened for it

	message, compress float64 // bytes a record on the wire and in the topic; ns of CPU

	row, insert, merge    float64 // bytes; us of CPU
	whois                 float64 // ms of CPU, of one part
	parts, whoisOverParts float64 // of the run over many days: how many parts; ms of CPU
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	var f fleet
	flag := flag.NewFlagSet("fleet", flag.ContinueOnError)
	flag.IntVar(&f.firewalls, "firewalls", 20, "firewalls")
	flag.IntVar(&f.rate, "rate", 20_000, "flows that end in a second on each, all day")
	flag.IntVar(&f.days, "days", 400, "for which the lake keeps records")
	flag.IntVar(&f.hotDays, "hot-days", 30, "for which ClickHouse keeps them")
	flag.IntVar(&f.kafkaHours, "kafka-hours", 72, "for which Kafka keeps them")
	flag.IntVar(&f.kafkaCopies, "kafka-copies", 3, "replicas of a partition")
	flag.IntVar(&f.hotCopies, "hot-copies", 2, "replicas in ClickHouse")
	flag.IntVar(&f.cores, "cores", 32, "of a ClickHouse node, each as fast as what was measured on")
	flag.Float64Var(&f.disk, "disk", 60, "TB of a ClickHouse node")
	flag.Float64Var(&f.busy, "busy", 0.5, "how busy a processor may be with writing: the rest is for questions and for catching up")
	flag.Float64Var(&f.full, "full", 0.7, "how full a disk may be: merges need room")
	flag.IntVar(&f.segment, "segment-records", 1_000_000, "segment_records of the archives")
	flag.Float64Var(&f.checkpointHours, "checkpoint-hours", 1, "checkpoint of the archives")
	archive := flag.String("archive", "bench/fleet/measured/archive.txt", "what bench/archive.sh printed")
	codec := flag.String("kafka", "bench/fleet/measured/kafka.txt", "what go test -run '^$' -bench Codec ./output/kafka printed")
	one := flag.String("clickhouse", "bench/fleet/measured/clickhouse.txt", "what bench/clickhouse.sh 20000000 printed: all in one day")
	many := flag.String("clickhouse-days", "bench/fleet/measured/clickhouse-days.txt", "what bench/clickhouse.sh 1000000 1 printed: twelve days")
	if err := flag.Parse(args); err != nil {
		return err
	}
	m, err := read(*archive, *codec, *one, *many)
	if err != nil {
		return err
	}
	return f.print(w, m)
}

// read finds the figures in the benchmarks' outputs.
func read(archive, codec, one, many string) (m measured, err error) {
	var errs []error
	find := func(path, pattern string, to ...*float64) {
		text, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
			return
		}
		all := regexp.MustCompile(`(?m)`+pattern).FindAllSubmatch(text, -1)
		if len(all) == 0 {
			errs = append(errs, fmt.Errorf("%s has no line like %s", path, pattern))
			return
		}
		found := all[len(all)-1] // a run may measure more than once
		for i, p := range to {
			if *p, err = strconv.ParseFloat(string(regexp.MustCompile(`,`).ReplaceAll(found[i+1], nil)), 64); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", path, err))
			}
		}
	}
	const n = `([\d.,]+)`
	find(archive, `^size +`+n+` bytes a record in segments, `+n+` in row logs`, &m.segment, &m.rowLog)
	find(archive, `^append +`+n+` ns of CPU a record`, &m.append)
	find(archive, `^seal +`+n+` ns of CPU a record`, &m.seal)
	find(archive, `^reader .* point, warm, bounded by a checkpoint \(.*; each `+n+` ms of CPU, `+n+` segments`, &m.bounded, &m.opened)
	var speed, ns, ratio float64
	find(codec, `^BenchmarkCodec/lz4-\S+.* `+n+` MB/s\s+`+n+` ns/record\s+`+n+` ratio`, &speed, &ns, &ratio)
	m.message, m.compress = speed*ns/1000/ratio, ns
	find(one, `^size +`+n+` bytes a row`, &m.row)
	find(one, `^insert .* `+n+` us of CPU a row`, &m.insert)
	find(one, `^merge +`+n+` us of CPU a row`, &m.merge)
	find(one, `^whois .* `+n+` ms of CPU`, &m.whois)
	find(many, `^whois .* `+n+` ms of CPU`, &m.whoisOverParts)
	find(many, `^size .* in `+n+` parts`, &m.parts)
	return m, errors.Join(errs...)
}

// print prints the table.
func (f *fleet) print(w io.Writer, m measured) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, value, from string) {
		if from == "" {
			fmt.Fprintf(t, "%s\t%s\n", what, value)
			return
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", what, value, from)
	}
	part := func(name string) { fmt.Fprintf(t, "\n%s\n", name) }
	perSecond := float64(f.firewalls * f.rate)
	perDay := perSecond * 86400
	row("all firewalls", fmt.Sprintf("%s records/s, %s a day", number(perSecond), number(perDay)), fmt.Sprintf("%d x %d", f.firewalls, f.rate))

	part("one firewall")
	own := float64(f.rate)
	row("processor", fmt.Sprintf("%.2g %% of a core, %.2g %% at idle priority", own*m.append/1e7, own*m.seal/1e7),
		fmt.Sprintf("append %.0f ns, seal %.0f ns a record", m.append, m.seal))
	row("archive, a day", inBytes(own*86400*m.segment), fmt.Sprintf("%.1f bytes a record", m.segment))
	row("row log, at most", inBytes(float64(f.segment)*m.rowLog), fmt.Sprintf("%.1f bytes a record, %d records", m.rowLog, f.segment))
	row("to Kafka", perSecondBytes(own*m.message), fmt.Sprintf("%.0f bytes a record, lz4", m.message))
	row("to the lake", perSecondBytes(own*m.segment), fmt.Sprintf("a segment each %.0f s", float64(f.segment)/own))

	part("lake")
	row("a day", inBytes(perDay*m.segment), fmt.Sprintf("%.1f bytes a record, in one copy", m.segment))
	row(fmt.Sprintf("%d days", f.days), inBytes(perDay*m.segment*float64(f.days)), "")
	objects := perDay * float64(f.days) / float64(f.segment)
	row("objects", number(objects), fmt.Sprintf("%d records each", f.segment))
	window := own*3600*(2*f.checkpointHours)/float64(f.segment) + 1
	row("one whois, firewall known", fmt.Sprintf("%.0f segments, %.0f ms of CPU", window, window*m.bounded/m.opened),
		fmt.Sprintf("within %.3g h after the time; %.1f ms for %.1f segments, warm, on a disk", 2*f.checkpointHours, m.bounded, m.opened))
	row("one whois, all firewalls", fmt.Sprintf("%.0f segments, %.1f s of CPU", window*float64(f.firewalls), window*float64(f.firewalls)*m.bounded/m.opened/1000), "the same for each")

	part("Kafka")
	row("in", perSecondBytes(perSecond*m.message), "")
	row(fmt.Sprintf("%d h on disk", f.kafkaHours), inBytes(perSecond*3600*float64(f.kafkaHours)*m.message*float64(f.kafkaCopies)), fmt.Sprintf("%d copies", f.kafkaCopies))
	consumers := perSecond * m.insert / 1e6 / f.busy
	partitions := math.Ceil(consumers/float64(f.firewalls)) * float64(f.firewalls)
	row("partitions", fmt.Sprintf("%.0f", partitions), fmt.Sprintf("%.1f consumers: %.1f us of CPU a row, %.0f %% busy; a multiple of the firewalls", consumers, m.insert, f.busy*100))

	part("ClickHouse")
	hot := perDay * m.row * float64(f.hotDays) * float64(f.hotCopies)
	row("a day", inBytes(perDay*m.row), fmt.Sprintf("%.1f bytes a row, in one copy", m.row))
	row(fmt.Sprintf("%d days", f.hotDays), inBytes(hot), fmt.Sprintf("%d copies", f.hotCopies))
	cores := perSecond * (m.insert + m.merge*float64(f.hotCopies)) / 1e6 / f.busy
	byCores, byDisk := cores/float64(f.cores), hot/(f.disk*1e12*f.full)
	row("cores for writing", fmt.Sprintf("%.0f", cores), fmt.Sprintf("insert %.1f us, merge %.1f us in each copy, %.0f %% busy", m.insert, m.merge, f.busy*100))
	row("nodes", fmt.Sprintf("%.0f", math.Max(math.Ceil(byCores), math.Ceil(byDisk))),
		fmt.Sprintf("%.1f by cores (%d each), %.1f by disk (%.0f TB each, %.0f %% full)", byCores, f.cores, byDisk, f.disk, f.full*100))
	perPart := math.Max(m.whoisOverParts-m.whois, 0) / (m.parts - 1)
	row("one whois", fmt.Sprintf("%.0f ms of CPU", m.whois+perPart*float64(f.hotDays-1)),
		fmt.Sprintf("%.0f ms, and %.1f ms for each further day that may hold the end", m.whois, perPart))
	row(fmt.Sprintf("%d days in ClickHouse instead", f.days), inBytes(perDay*m.row*float64(f.days*f.hotCopies)),
		fmt.Sprintf("%.0f nodes; the lake has the same in %s", math.Ceil(perDay*m.row*float64(f.days*f.hotCopies)/(f.disk*1e12*f.full)), inBytes(perDay*m.segment*float64(f.days))))
	return t.Flush()
}

// number writes a count so that people read it.
func number(v float64) string {
	for _, u := range []struct {
		of   float64
		name string
	}{{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.of {
			return fmt.Sprintf("%.3g %s", v/u.of, u.name)
		}
	}
	return fmt.Sprintf("%.3g", v)
}

func inBytes(v float64) string        { return number(v) + "B" }
func perSecondBytes(v float64) string { return number(v) + "B/s" }
