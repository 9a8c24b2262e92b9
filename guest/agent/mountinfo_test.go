package agent

import (
	"strings"
	"testing"
)

func TestParseMountinfo(t *testing.T) {
	const text = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
63 43 0:39 /@home /srv/with\040space rw,relatime shared:7 master:3 - btrfs /dev/loop0 rw,subvol=/@home
64 43 0:40 / /srv/m rw - overlay overlay rw,lowerdir=/a\054b,upperdir=/up\134per,workdir=/w
`
	all, err := parseMountinfo([]byte(text))
	if err != nil || len(all) != 3 {
		t.Fatalf("%d mounts, %v", len(all), err)
	}
	root, home, overlay := all[0], all[1], all[2]
	if root.dev != "254:0" || root.major != 254 || root.id != 27 || root.parent != 1 || root.superOptions != "rw,discard" || root.source != "/dev/vda" {
		t.Errorf("root: %+v", root)
	}
	if home.point != "/srv/with space" || home.root != "/@home" || home.major != 0 || home.kind != "btrfs" {
		t.Errorf("home: %+v", home)
	}
	if upper, ok := option(overlay.superOptions, "upperdir"); !ok || upper != `/up\per` {
		t.Errorf("upperdir %q, %v", upper, ok)
	}
	if _, ok := option(overlay.superOptions, "ro"); ok {
		t.Error("an option that is not there")
	}
	for _, bad := range []string{"\n", "1 2 3:4 / / rw ext4 /dev/vda rw", "x 2 3:4 / / rw - ext4 /dev/vda rw", "1 2 34 / / rw - ext4 /dev/vda rw", "1 2 3:4 / here rw - ext4 /dev/vda rw"} {
		if _, err := parseMountinfo([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if _, err := parseMountinfo([]byte(strings.Repeat("1 2 3:4 / / rw - ext4 /dev/vda rw\n", maxMounts+1))); err == nil {
		t.Error("more mounts than the limit were taken")
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/srv", "/srv", true}, {"/srv/a", "/srv", true}, {"/srva", "/srv", false}, {"/srv", "/", true}, {"/", "/srv", false}} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("within(%q, %q) = %v", c.path, c.dir, got)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"))
	f.Add([]byte("63 43 0:39 /@home /srv/with\\040space rw shared:7 - btrfs /dev/loop0 rw\n"))
	f.Add([]byte("1 2 3:4 / /\\999 rw - a \\"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseMountinfo(b)
		if err != nil {
			return
		}
		for _, m := range all {
			if !strings.HasPrefix(m.point, "/") || m.major < 0 {
				t.Errorf("%+v", m)
			}
		}
	})
}
