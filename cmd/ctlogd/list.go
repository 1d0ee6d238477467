package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/input/netns"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/pipeline/filter"
	"github.com/ctlogd/ctlogd/printable"
)

type listOptions struct {
	expect, json bool
	netns        []string
	color        string
	countBy      string
	most         int
}

// newList makes the command that shows the table.
func newList(stdout io.Writer) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:   "list [WORD=VALUE...]",
		Short: "Show the flows that are in the connection tracking table now",
		Long: `Show the flows that are in the connection tracking table of this network namespace now, as the kernel hands them out. It needs
CAP_NET_ADMIN, and no daemon. Words are the matchers of filter rules, as with ctlogd tap, all of which must hold:

    ctlogd list nat=snat proto=tcp helper=ftp zone=3

With --expect, it shows what helpers expect instead: * stands for what may be anything.
With --count-by, it shows how many flows have each value, the most frequent one first. The values are of:

    ` + strings.Join(countNames(), ", "),
		Example: "  ctlogd list dst_port=443 --count-by src -n 10\n  ctlogd list --json min_bytes=1GiB | jq .src_ip\n  ctlogd list --expect",
		RunE: func(cmd *cobra.Command, words []string) error {
			if o.color != "auto" && o.color != "always" && o.color != "never" {
				return fmt.Errorf("--color %s: use auto, always or never", o.color)
			}
			accept, err := filter.ParseWords(words)
			if err != nil {
				return err
			}
			if o.countBy != "" && countable[o.countBy] == nil {
				return fmt.Errorf("--count-by %s: use %s", o.countBy, strings.Join(countNames(), ", "))
			}
			if o.most < 0 {
				return fmt.Errorf("-n %d: write a number of lines, or 0 for all", o.most)
			}
			if err := runList(cmd.Context(), accept, o, stdout); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&o.expect, "expect", false, "show the expectations of helpers instead of flows")
	cmd.Flags().StringSliceVar(&o.netns, "netns", nil, "show the tables of these network namespaces, by `NAME`; own is that of ctlogd list, all is every one's")
	cmd.Flags().StringVar(&o.countBy, "count-by", "", "count flows by this `VALUE`")
	cmd.Flags().IntVarP(&o.most, "lines", "n", 0, "show so many flows or values at most; 0 shows all")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON lines, see docs/json.md")
	cmd.Flags().StringVar(&o.color, "color", "auto", "`WHEN` to colour lines: auto (on a terminal), always or never")
	return cmd
}

func runList(ctx context.Context, accept filter.Func, o listOptions, stdout io.Writer) error {
	out := bufio.NewWriterSize(stdout, 64<<10)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shown := 0
	var failed error
	done := func() bool { return failed != nil || o.countBy == "" && o.most > 0 && shown == o.most }
	show, finish, err := o.shower(ctx, out, stdout)
	if err != nil {
		return err
	}
	err = o.read(ctx, func(r *flow.Record) {
		if done() || accept != nil && !accept(r) {
			return
		}
		shown++
		if failed = show(r); done() {
			cancel()
		}
	})
	if done() { // who has seen enough ends the reading
		err = nil
	}
	if err == nil && failed == nil && ctx.Err() == nil || o.countBy == "" {
		failed = cmp.Or(failed, finish())
	}
	failed = cmp.Or(failed, out.Flush())
	if errors.Is(failed, unix.EPIPE) { // head has seen enough
		failed = nil
	}
	if errors.Is(err, unix.EPERM) && len(o.netns) > 0 {
		err = fmt.Errorf("%w; the tables of other network namespaces take CAP_SYS_ADMIN besides CAP_NET_ADMIN: run as root, or with sudo", err)
	} else if errors.Is(err, unix.EPERM) {
		err = errors.New("the kernel shows the table to those with CAP_NET_ADMIN alone; run as root, or with sudo")
	}
	return errors.Join(err, failed)
}

// read reads what is asked for.
func (o *listOptions) read(ctx context.Context, visit func(*flow.Record)) error {
	own, names := len(o.netns) == 0, o.netns
	var known *netns.Listing
	if !own {
		var err error
		if known, err = netns.List(); err != nil {
			return err
		}
		if slices.Contains(names, ctnetlink.AllNamespaces) {
			own, names = true, known.Names()
		} else if i := slices.Index(names, ctnetlink.OwnNamespace); i >= 0 {
			own, names = true, slices.Delete(slices.Clone(names), i, i+1)
		}
	}
	if own {
		from := ctnetlink.ReadTable
		if o.expect {
			from = ctnetlink.ReadExpectations
		}
		if err := from(ctx, visit); err != nil {
			return err
		}
	}
	var errs []error
	for _, name := range names { // one that cannot be read keeps none of the others back
		if ctx.Err() != nil {
			break
		}
		conn, n, err := known.Connect(name)
		if err == nil {
			err = ctnetlink.ReadTableIn(ctx, conn, n, o.expect, visit)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shower returns what shows a record, and what is to be shown when all have been.
func (o *listOptions) shower(ctx context.Context, out *bufio.Writer, stdout io.Writer) (show func(*flow.Record) error, finish func() error, err error) {
	finish = func() error { return nil }
	if o.countBy != "" {
		c := newCounting(o.countBy)
		return func(r *flow.Record) error { c.add(r); return nil },
			func() error { return c.print(out, o.most, o.json) }, nil
	}
	if o.json {
		enc, err := listEncoder(ctx)
		if err != nil {
			return nil, nil, err
		}
		var line []byte
		return func(r *flow.Record) error {
			line = append(enc.Append(line[:0], r), '\n')
			_, err := out.Write(line)
			return err
		}, finish, nil
	}
	p := live.Printer{Color: o.color == "always" || o.color == "auto" && isTerminal(stdout)}
	return func(r *flow.Record) error {
		line := p.Line(r)
		if o.expect {
			line = expectation(r)
		} else if p.HeadDue() {
			_, _ = out.WriteString(p.Head() + "\n") // out remembers an error
		}
		_, err := out.WriteString(line + "\n")
		return err
	}, finish, nil
}

// listEncoder returns the encoder of JSON lines. Flow ids are the daemon's, if the service's configuration may be read.
func listEncoder(ctx context.Context) (format.Encoder, error) {
	cfg := DefaultConfig()
	if text, err := readConfig(ctx, theService()); err == nil {
		if theirs, err := validConfig(ctx, theService(), text); err == nil {
			cfg = theirs
		}
	}
	if err := cfg.identify(); err != nil {
		return nil, err
	}
	return format.New("flat", format.Options{Host: cfg.Host, Observer: cfg.Observer, Version: version})
}

// expectation returns an expectation as a line. What its mask leaves open is a star.
//
//	tcp 203.0.113.5:* -> 198.51.100.7:20345 ftp, of tcp 10.0.0.7:40015 -> 203.0.113.5:21, 287 s left
func expectation(r *flow.Record) string {
	t, mask := &r.Orig, &r.Reply
	end := func(a netip.Addr, mask netip.Addr, port, portMask uint16) string {
		text := a.String()
		if r.Has&flow.HasReply != 0 && mask.IsUnspecified() {
			text = "*"
		} else if bits, whole := prefix(mask); r.Has&flow.HasReply != 0 && bits < a.BitLen() {
			if text += "/" + strconv.Itoa(bits); !whole {
				text = a.String() + "/" + mask.String()
			}
		}
		if !t.Proto.HasPorts() {
			return text
		}
		if r.Has&flow.HasReply != 0 && portMask == 0 {
			return joinPort(text, "*")
		}
		return joinPort(text, strconv.Itoa(int(port)))
	}
	// The kernel's mask has the source alone (struct nf_conntrack_tuple_mask); the destination is always exact.
	line := fmt.Sprintf("%s %s -> %s", t.Proto, end(t.SrcAddr(), mask.SrcAddr(), t.SrcPort, mask.SrcPort),
		end(t.DstAddr(), allOnes(t.DstAddr()), t.DstPort, 0xffff))
	x := r.Extra
	if x == nil {
		return line
	}
	if helper := x.Helper.String(); helper != "" {
		line += " " + printable.Word(helper)
	}
	if x.HasMaster {
		m := &x.Master
		line += fmt.Sprintf(", of %s %s -> %s", m.Proto, netip.AddrPortFrom(m.SrcAddr(), m.SrcPort), netip.AddrPortFrom(m.DstAddr(), m.DstPort))
	}
	for i, name := range flow.ExpectFlagNames {
		if x.Flags&(1<<i) != 0 {
			line += ", " + name
		}
	}
	if r.Netns != 0 {
		line += ", in " + printable.Word(r.Netns.Info().Name)
	}
	if r.Has&flow.HasZone != 0 && r.Zone != 0 {
		line += fmt.Sprintf(", zone %d", r.Zone)
	}
	if r.Has&flow.HasTimeout != 0 && r.Timeout > 0 {
		line += fmt.Sprintf(", %d s left", r.Timeout)
	}
	return line
}

func joinPort(addr, port string) string {
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	return addr + ":" + port
}

// prefix returns how many bits a mask begins with; whole is false if others follow.
func prefix(mask netip.Addr) (bits int, whole bool) {
	whole = true
	ended := false
	for _, b := range mask.AsSlice() {
		for i := 7; i >= 0; i-- {
			one := b>>i&1 == 1
			switch {
			case one && ended:
				whole = false
			case one:
				bits++
			default:
				ended = true
			}
		}
	}
	return bits, whole
}

func allOnes(like netip.Addr) netip.Addr {
	b := like.AsSlice()
	for i := range b {
		b[i] = 0xff
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// countable returns the value that a record is counted by. A record without one is counted as "-".
var countable = map[string]func(dst []byte, r *flow.Record) []byte{
	"src":      func(dst []byte, r *flow.Record) []byte { return r.Orig.SrcAddr().AppendTo(dst) },
	"dst":      func(dst []byte, r *flow.Record) []byte { return r.Orig.DstAddr().AppendTo(dst) },
	"src_port": func(dst []byte, r *flow.Record) []byte { return appendPort(dst, r, r.Orig.SrcPort) },
	"dst_port": func(dst []byte, r *flow.Record) []byte { return appendPort(dst, r, r.Orig.DstPort) },
	"nat_src": func(dst []byte, r *flow.Record) []byte {
		if r.NAT()&flow.NATSrc == 0 {
			return dst
		}
		return r.Reply.DstAddr().AppendTo(dst)
	},
	"nat_dst": func(dst []byte, r *flow.Record) []byte {
		if r.NAT()&flow.NATDst == 0 {
			return dst
		}
		return r.Reply.SrcAddr().AppendTo(dst)
	},
	"proto": func(dst []byte, r *flow.Record) []byte { return append(dst, r.Orig.Proto.String()...) },
	"state": func(dst []byte, r *flow.Record) []byte { return append(dst, r.StateName()...) },
	"helper": func(dst []byte, r *flow.Record) []byte {
		if r.Extra == nil {
			return dst
		}
		return append(dst, r.Extra.Helper.String()...)
	},
	"netns": func(dst []byte, r *flow.Record) []byte {
		if r.Netns == 0 {
			return append(dst, "own"...)
		}
		return append(dst, r.Netns.Info().Name...)
	},
	"zone": func(dst []byte, r *flow.Record) []byte {
		if r.Has&flow.HasZone == 0 {
			return append(dst, '0')
		}
		return strconv.AppendUint(dst, uint64(r.Zone), 10)
	},
	"mark": func(dst []byte, r *flow.Record) []byte { return strconv.AppendUint(dst, uint64(r.Mark), 10) },
	"nat": func(dst []byte, r *flow.Record) []byte {
		switch r.NAT() & (flow.NATSrc | flow.NATDst) {
		case flow.NATSrc:
			return append(dst, "snat"...)
		case flow.NATDst:
			return append(dst, "dnat"...)
		case flow.NATSrc | flow.NATDst:
			return append(dst, "snat,dnat"...)
		}
		return append(dst, "none"...)
	},
}

func countNames() (names []string) {
	for name := range countable {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// appendPort appends a port with its protocol: 443 of TCP and of UDP are two.
func appendPort(dst []byte, r *flow.Record, port uint16) []byte {
	if !r.HasPorts() {
		return dst
	}
	dst = strconv.AppendUint(dst, uint64(port), 10)
	return append(append(dst, '/'), r.Orig.Proto.String()...)
}

// maxCounted bounds the values that are counted by name: what comes later goes into one sum. The memory is bounded so.
const maxCounted = 1 << 20

// counting counts flows by a value.
type counting struct {
	by    string
	room  int // values that are counted by name
	value func(dst []byte, r *flow.Record) []byte
	buf   []byte
	at    map[string]int
	sums  []counted
	other counted // the values that there was no room for
	all   counted
}

type counted struct {
	value        string
	flows, bytes uint64
}

func newCounting(by string) *counting {
	return &counting{by: by, room: maxCounted, value: countable[by], at: map[string]int{}}
}

func (c *counting) add(r *flow.Record) {
	c.buf = c.value(c.buf[:0], r)
	bytes := r.OrigCounters.Bytes + r.ReplyCounters.Bytes
	sum := &c.other
	i, ok := c.at[string(c.buf)]
	if !ok && len(c.sums) < c.room {
		i, ok = len(c.sums), true
		value := string(c.buf)
		c.at[value] = i
		c.sums = append(c.sums, counted{value: value})
	}
	if ok {
		sum = &c.sums[i]
	}
	for _, s := range []*counted{sum, &c.all} {
		s.flows++
		s.bytes += bytes
	}
}

func (c *counting) print(out io.Writer, most int, asJSON bool) error {
	slices.SortFunc(c.sums, func(a, b counted) int {
		return cmp.Or(cmp.Compare(b.flows, a.flows), cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.value, b.value))
	})
	sums := c.sums
	rest := c.other
	if most > 0 && len(sums) > most {
		for _, s := range sums[most:] {
			rest.flows += s.flows
			rest.bytes += s.bytes
		}
		sums = sums[:most]
	}
	if asJSON {
		enc := json.NewEncoder(out)
		for _, s := range sums {
			if err := enc.Encode(map[string]any{c.by: s.value, "flows": s.flows, "bytes": s.bytes}); err != nil {
				return err
			}
		}
		return nil
	}
	line := func(s counted, value string) error {
		_, err := fmt.Fprintf(out, "%10d %5.1f %% %16d  %s\n", s.flows, float64(s.flows)*100/float64(max(c.all.flows, 1)), s.bytes, value)
		return err
	}
	if _, err := fmt.Fprintf(out, "%10s %7s %16s  %s\n", "flows", "share", "bytes", c.by); err != nil {
		return err
	}
	for _, s := range sums {
		if err := line(s, printable.Text(cmp.Or(s.value, "-"))); err != nil {
			return err
		}
	}
	if rest.flows > 0 {
		if err := line(rest, "(others)"); err != nil {
			return err
		}
	}
	return line(c.all, "(all)")
}
