package wire

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/guest/object"
	"cairn/guest/object/discover"
	"cairn/index/restorepoint"
)

// debian are the files of a small server.
var debian = map[string]string{
	"etc/os-release":                         "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n",
	"etc/hostname":                           "db01\n",
	"etc/fstab":                              "/dev/vda / ext4 defaults 0 1\n",
	"etc/passwd":                             "root:x:0:0:root:/root:/bin/bash\nanna:x:1000:1000:Anna:/home/anna:/bin/bash\n",
	"etc/group":                              "root:x:0:\nanna:x:1000:\n",
	"home/anna/letter":                       "dear\n",
	"root/.profile":                          "\n",
	"etc/postgresql/15/main/postgresql.conf": "data_directory = '/var/lib/postgresql/15/main'\nport = 5433\n",
	"srv/pg/15/main/PG_VERSION":              "15\n",
	"srv/pg/15/main/base/1/1259":             "tuple\n",
	"srv/pg/15/main/postgresql.auto.conf":    "wal_level = 'logical'\n",
	"etc/redis/redis.conf":                   "dir /var/lib/redis\n",
	"var/lib/redis/dump.rdb":                 "REDIS0010",
	"var/lib/dpkg/status":                    "Package: redis-server\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5:7.0.15-1\n\n",
}

// debianImage makes an ext4 image of these files, and gives their folder, too.
func debianImage(t *testing.T) (dir, image string) {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs mke2fs")
	}
	dir = filepath.Join(t.TempDir(), "guest")
	for name, text := range debian {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/srv/pg", filepath.Join(dir, "var/lib/postgresql")); err != nil {
		t.Fatal(err)
	}
	image = dir + ".img"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", dir, image).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	return dir, image
}

// fileImage is a file as a disk.
type fileImage struct{ *os.File }

func (f fileImage) Size() int64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

func (f fileImage) NextData(off int64) (start, end int64, err error) {
	if start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA); err == unix.ENXIO {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	return start, end, err
}

// What is found in a point's files is what is found in the same files on a
// disk.
func TestAPointTellsWhatItsFilesTell(t *testing.T) {
	dir, name := debianImage(t)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := &restorepoint.Manifest{ID: "p", Time: time.Unix(1e9, 0), Consistency: restorepoint.Consistency{Level: "crash", Reason: "no agent"},
		Disks: []restorepoint.Disk{{Name: "vda", Size: fileImage{f}.Size()}}}
	tr, err := tree.Open(t.Context(), m, func(string) (restorepoint.Image, error) { return fileImage{f}, nil })
	if err != nil {
		t.Fatal(err)
	}
	v, err := tr.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Derive(Find)(t.Context(), m, v)
	if err != nil {
		t.Fatal(err)
	}
	root := discover.OS(dir)
	defer root.Close()
	want := discover.Document(t.Context(), root, object.Consistency{Level: object.Crash})
	markDerived(want, m)
	if len(want.Warnings) > 0 {
		t.Errorf("warnings %q", want.Warnings)
	}
	a, err := object.Encode(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := object.Encode(want)
	if err != nil || string(a) != string(b) {
		t.Errorf("%v:\ngot  %s\nwant %s", err, a, b)
	}
	var names []string
	for _, o := range got.Objects {
		names = append(names, o.Name)
	}
	if want := []string{"packages", "postgresql@15-main", "redis", "users/anna", "users/root"}; !reflect.DeepEqual(names, want) {
		t.Errorf("objects %q, want %q", names, want)
	}
}
