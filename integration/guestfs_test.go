package integration

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// otherPrograms and otherModules are what the lab's guest needs beside its own
// to make every kind of filesystem and volume that Debian's kernel writes.
var (
	otherPrograms = []string{"mdadm", "lvm", "sfdisk", "mkfs.btrfs", "btrfs", "mkfs.vfat", "mkfs.exfat"}
	otherModules  = []string{
		"lib/zstd/zstd_compress", "lib/raid6/raid6_pq", "crypto/xor", "crypto/blake2b_generic", "fs/btrfs/btrfs",
		"fs/fat/fat", "fs/fat/vfat", "fs/nls/nls_cp437", "fs/nls/nls_ascii", "fs/exfat/exfat",
		"drivers/md/md-mod", "drivers/md/raid1",
	}
)

// makeOthers is what the guest does: XFS on a striped logical volume over two
// disks, btrfs with a subvolume on a mirror of two, FAT and exFAT and swap on
// partitions.
const makeOthers = `set -e
export LVM_SYSTEM_DIR=/tmp/lvm LVM_SUPPRESS_FD_WARNINGS=1
mkdir -p /tmp/lvm /mnt/xfs /mnt/btrfs /mnt/vfat /mnt/exfat
echo 'devices { dir="/dev" scan=["/dev"] use_devicesfile=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { locking_type=1 event_activation=0 use_lvmpolld=0 }
backup { backup=0 archive=0 }' >/tmp/lvm/lvm.conf
modprobe dm-mod; modprobe xfs
lvm vgcreate -q vg-data /dev/vdc /dev/vdd
lvm lvcreate -q -y -Zn -Wn -i 2 -I 64k -n files -l 100%FREE vg-data
lvm vgchange -q -ay vg-data
mkfs.xfs -q /dev/vg-data/files
mount -t xfs /dev/vg-data/files /mnt/xfs
mdadm --create /dev/md0 --run --quiet --auto=md --level=1 --raid-devices=2 --assume-clean /dev/vde /dev/vdf
mkfs.btrfs -q /dev/md0
mount -t btrfs -o compress=zstd /dev/md0 /mnt/btrfs
btrfs -q subvolume create /mnt/btrfs/sub
printf 'label: gpt\nsize=48MiB\nsize=48MiB\nsize=16MiB,type=S\n' | sfdisk -q /dev/vdg
sleep 1
mkfs.vfat -n FATTY /dev/vdg1 >/dev/null
mkfs.exfat -L EXTRA /dev/vdg2 >/dev/null
dd if=/dev/urandom of=/dev/vdg3 bs=64k count=256 2>/dev/null
mkswap /dev/vdg3 >/dev/null
mount -t vfat -o utf8 /dev/vdg1 /mnt/vfat
mount -t exfat /dev/vdg2 /mnt/exfat
i=0
for d in /mnt/xfs /mnt/btrfs /mnt/btrfs/sub /mnt/vfat /mnt/exfat; do
	mkdir -p $d/docs/deep/er $d/many
	head -c 3000000 /dev/urandom >$d/random.bin
	yes "the same line $d" | head -c 2000000 >$d/text
	j=0; while [ $j -lt 150 ]; do echo "file $j of $d" >"$d/many/a file with a rather long name $j.txt"; j=$((j+1)); done
	printf 'Zürich\n' >"$d/docs/Grüße aus Zürich.txt"
	: >$d/docs/empty
	head -c 5000000 /dev/urandom >$d/deleted; sync; rm $d/deleted
done
for d in /mnt/xfs /mnt/btrfs /mnt/btrfs/sub; do
	ln $d/text $d/docs/hard; ln -s ../text $d/docs/soft; mknod $d/docs/null c 1 3; mkfifo $d/docs/pipe
	setfattr -n user.note -v hello $d/text; setfacl -m u:1234:r $d/docs/empty; chmod 4711 $d/random.bin; chown 7:8 $d/random.bin
	dd if=/dev/urandom of=$d/sparse bs=4k count=1 seek=5000 2>/dev/null; truncate -s 100M $d/sparse
done
sync
`

// listing describes every file below a folder; the guest and the host can run it.
const listing = `cd "$1" || exit 1
find . ! -type d -exec stat -c '%n|%s|%F|%a|%u:%g|%Y|%h' {} \; | sort
find . -type f -exec sha256sum {} \; | sort -k2; find . -type l -exec readlink {} \; | sort`

// TestGuestFilesystems: a real kernel makes every kind of filesystem and volume
// that it can write, in a running guest; the point shows what the guest shows.
func TestGuestFilesystems(t *testing.T) {
	t.Parallel() // it boots guests of its own, and measures no time
	h := newHost(t)
	h.sparing = true
	var names []string
	g := labtest.Start(t, func(o *lab.Options) {
		kit, err := o.Assets.Kit(t.Context(), t.TempDir(), otherPrograms, otherModules)
		if err != nil {
			t.Fatal(err)
		}
		o.Inject, o.MemoryMB = kit, 512
		for _, d := range []struct {
			id   string
			size int64
		}{{"vdc", 200 << 20}, {"vdd", 200 << 20}, {"vde", 160 << 20}, {"vdf", 160 << 20}, {"vdg", 128 << 20}} {
			disk, err := lab.BlankDisk(t.Context(), o.Dir, d.id, "qcow2", d.size)
			if err != nil {
				t.Fatal(err)
			}
			o.Disks = append(o.Disks, disk)
			names = append(names, d.id)
		}
	})
	awaitAgent(t, g, true)
	if out := labtest.Shell(t, g, "modprobe libcrc32c; "+lab.KitSetup+makeOthers+"cat /proc/mounts"); strings.Contains(out, "is not loaded") {
		t.Fatal(out)
	}
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket)
	s := h.backup(t)
	t.Logf("%d MiB left out as free, %d MiB as swap", s.BytesFree>>20, s.BytesSwap>>20)
	if s.BytesSwap < 15<<20 || s.BytesFree < 5*5_000_000 {
		t.Errorf("left out: %d free, %d swap", s.BytesFree, s.BytesSwap)
	}
	mnt := filepath.Join(h.dir, "m")
	h.mountAt(t, mnt)
	for _, dir := range []string{"/mnt/xfs", "/mnt/btrfs", "/mnt/btrfs/sub", "/mnt/vfat", "/mnt/exfat"} {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			want := labtest.Shell(t, g, "set -- "+dir+"; "+listing)
			out, err := exec.Command("sh", "-c", listing, "sh", filepath.Join(mnt, vmName, "latest/fs", dir)).Output()
			if err != nil {
				t.Fatal(err)
			}
			compareLines(t, want, string(out))
		})
	}
	if out, err := exec.Command("ls", filepath.Join(mnt, vmName, "latest/volumes")).Output(); err == nil {
		t.Logf("volumes: %s", strings.ReplaceAll(string(out), "\n", " "))
	}
}

func compareLines(t *testing.T, want, got string) {
	t.Helper()
	w, g := strings.Split(strings.TrimSpace(want), "\n"), strings.Split(strings.TrimSpace(got), "\n")
	shown := 0
	for _, line := range w {
		if !slices.Contains(g, line) && shown < 10 {
			shown++
			t.Errorf("only in the guest: %s", line)
		}
	}
	for _, line := range g {
		if !slices.Contains(w, line) && shown < 20 {
			shown++
			t.Errorf("only in the point: %s", line)
		}
	}
	if len(w) < 300 {
		t.Errorf("only %d lines are compared", len(w))
	}
}
