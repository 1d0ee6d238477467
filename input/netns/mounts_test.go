package netns

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMounts(t *testing.T) {
	const (
		root   = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
		blue   = "77 42 0:4 net:[4026532281] /run/netns/blue rw shared:20 - nsfs nsfs rw\n"
		twice  = "78 27 0:4 net:[4026532281] /run/netns/blue rw shared:20 master:3 - nsfs nsfs rw\n"
		docker = "79 42 0:4 net:[4026532999] /run/docker/netns/1-abc rw shared:20 - nsfs nsfs rw\n"
		space  = `80 42 0:4 net:[4026532300] /run/netns/a\040b\134c rw - nsfs nsfs rw` + "\n"
		tmpfs  = "90 27 0:60 / /run/netns rw - tmpfs none rw\n"
		run    = "91 27 0:61 / /run rw - tmpfs none rw\n"
	)
	for _, tt := range []struct {
		name, text string
		want       map[string]mount
	}{
		{"none", root, map[string]mount{}},
		{"two", root + blue + docker, map[string]mount{
			"blue": {"/run/netns/blue", 4026532281}, "1-abc": {"/run/docker/netns/1-abc", 4026532999}}},
		{"in both directories", "79 42 0:4 net:[4026531840] /run/docker/netns/blue rw - nsfs nsfs rw\n" + blue +
			"79 42 0:4 net:[4026531840] /run/docker/netns/blue rw - nsfs nsfs rw\n", map[string]mount{"blue": {"/run/netns/blue", 4026532281}}},
		{"twice", blue + twice, map[string]mount{"blue": {"/run/netns/blue", 4026532281}}},
		{"a name of any bytes", space, map[string]mount{`a b\c`: {`/run/netns/a b\c`, 4026532300}}},
		{"covered", blue + docker + tmpfs, map[string]mount{"1-abc": {"/run/docker/netns/1-abc", 4026532999}}},
		{"all covered", blue + docker + run, map[string]mount{}},
		{"covered by a file", blue + "92 27 254:0 /etc/passwd /run/netns/blue rw - ext4 /dev/vda rw\n", map[string]mount{}},
		{"of another kind", "93 27 0:4 mnt:[4026532281] /run/netns/blue rw - nsfs nsfs rw\n", map[string]mount{}},
		{"of another file system", "94 27 0:4 net:[4026532281] /run/netns/blue rw - fuse nsfs rw\n", map[string]mount{}},
		{"elsewhere", "95 27 0:4 net:[4026532281] /srv/netns/blue rw - nsfs nsfs rw\n", map[string]mount{}},
		{"deeper", "96 27 0:4 net:[4026532281] /run/netns/a/blue rw - nsfs nsfs rw\n", map[string]mount{}},
	} {
		if diff := cmp.Diff(tt.want, parseMounts([]byte(tt.text)), cmp.AllowUnexported(mount{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("77 42 0:4 net:[4026532281] /run/netns/blue rw shared:20 - nsfs nsfs rw\n")
	f.Add(`80 42 0:4 net:[1] /run/netns/a\0 rw - nsfs`)
	f.Fuzz(func(t *testing.T, text string) {
		for name, m := range parseMounts([]byte(text)) {
			if name == "" || m.path == "" {
				t.Errorf("%q: %+v", name, m)
			}
		}
	})
}
