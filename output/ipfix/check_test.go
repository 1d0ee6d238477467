package ipfix

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCollectors(t *testing.T) {
	c := Config{Address: "udp://192.0.2.1", Failover: []string{"tls://[2001:db8::1]"}}
	if diff := cmp.Diff([]string{"udp://192.0.2.1:4739", "tls://[2001:db8::1]:4740"}, c.Collectors()); diff != "" {
		t.Errorf("collectors (-want +got):\n%s", diff)
	}
}

func TestName(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Address: "udp://192.0.2.1"}, "ipfix:udp://192.0.2.1"},
		{Config{Address: "udp://192.0.2.1", ObservationDomain: new(uint32(7))}, "ipfix:udp://192.0.2.1#7"},
	} {
		e, err := New(tt.config, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if e.Name() != tt.want {
			t.Errorf("name %s, want %s", e.Name(), tt.want)
		}
	}
}

func TestCheckAndReach(t *testing.T) {
	open := listenTCP(t, "127.0.0.1:0")
	defer open.Close()
	go func() {
		for {
			conn, err := open.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	up, down := "tcp://"+open.Addr().String(), "tcp://"+closed.Addr().String()

	const name, remedy = "tcp://collector.invalid", "; write a name that resolves, or an address"
	for _, tt := range []struct {
		config       Config
		check, reach string // parts of the errors; "" for none
	}{
		{Config{Address: up}, "", ""},
		{Config{Address: "udp://" + closed.Addr().String()}, "", ""},
		{Config{Address: "udp://[::1]:4739"}, "", ""},
		{Config{Address: down}, "", "collector " + down + ": dial tcp " + closed.Addr().String() +
			": connect: connection refused; records wait until a session can be begun"},
		{Config{Address: up, Failover: []string{down}}, "", "collector " + down + ": "},
		{Config{Address: name}, "collector " + name + ":4739: lookup collector.invalid", "collector.invalid"},
		{Config{Address: up, Failover: []string{name}}, remedy, "collector.invalid"},
	} {
		t.Run(tt.config.Address+strings.Join(tt.config.Failover, ""), func(t *testing.T) {
			_, reach := tt.config.Reach(t.Context())
			for what, got := range map[string]struct {
				err  error
				want string
			}{
				"Check": {tt.config.Check(t.Context()), tt.check}, "Reach": {reach, tt.reach},
			} {
				switch {
				case got.want == "" && got.err != nil:
					t.Errorf("%s: %v", what, got.err)
				case got.want != "" && (got.err == nil || !strings.Contains(got.err.Error(), got.want)):
					t.Errorf("%s: %v, want %q", what, got.err, got.want)
				}
			}
		})
	}
}
