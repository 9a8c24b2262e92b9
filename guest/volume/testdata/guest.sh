#!/bin/busybox sh
# The init of make.sh's guest: see there.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
for c in vgcreate vgchange vgcfgbackup lvcreate lvextend lvchange lvconvert lvs pvs; do ln -s lvm /sbin/$c; done
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
mount -t tmpfs -o size=1400m t /tmp; mount -t tmpfs r /run
while read -r m; do insmod /modules/"$m" 2>/dev/null; done < /modules/order
echo "VM UP $(uname -r)"
export LVM_SUPPRESS_FD_WARNINGS=1
cat > /etc/lvm/lvm.conf <<C
devices { dir="/dev" scan=["/dev"] use_devicesfile=0 md_component_detection=1 filter=["a|.*|"] }
activation { udev_sync=0 udev_rules=0 verify_udev_operations=1 monitoring=0 checks=0 }
global { thin_check_executable="" cache_check_executable="" use_lvmetad=0 locking_type=1 event_activation=0 use_lvmpolld=0 }
backup { backup=0 archive=0 }
C
mkdir -p /tmp/o; cd /tmp/o
: > sums

# pattern SEED: 4 KiB blocks, numbered and different at each position.
awk 'BEGIN { for (i = 0; i < 146; i++) printf "%027d\n", i * 7919 }' | head -c 4079 > /tmp/tail
pattern() { awk -v s="$1" -v n="$2" 'BEGIN { while ((getline l < "/tmp/tail") > 0) t = t l "\n"; for (i = 0; i < n; i++) printf "%-7s %08d\n%s", s, i, t }'; }
sum() { echo "$1 $(blockdev --getsize64 "$2") $(sha256sum < "$2" | cut -d' ' -f1)" >> sums; }
next=0
# disk NAME KIB: a file as a loop device, in $dev.
disk() {
	truncate -s "$2"k "$1"; dev=/dev/loop$next; [ -b $dev ] || mknod $dev b 7 $next
	losetup $dev "$1"; next=$((next+1))
}
# array NAME SIZES mdadm-arguments
array() {
	name=$1 sizes=$2; shift 2; devs="" i=0
	for k in $sizes; do disk "md-$name.$i" "$k"; devs="$devs $dev"; i=$((i+1)); done
	md=/dev/md9; [ "$name" = r1-named ] && md=/dev/md/data
	mdadm --create $md --run --quiet --auto=md --homehost=host --raid-devices=$i "$@" $devs || { echo "FAIL $name"; dmesg | tail -5; real=$md; return; }
	real=$(readlink -f $md)
	mdadm --wait $real 2>/dev/null
	pattern "$name" 2600 > /tmp/p; dd if=/tmp/p of=$real bs=4k conv=fsync 2>/dev/null
	sync; mdadm --wait-clean $real 2>/dev/null; sum "md-$name" $real
}
finish() { mdadm --stop $real; for d in $devs; do losetup -d $d; done; }
e="2400 2400" t="2400 2400 2400" q="2400 2400 2400 2400"
array linear-12 "2400 3100 2700" --level=linear --metadata=1.2; finish
array linear-090 "2400 3100 2700" --level=linear --metadata=0.90; finish
array r0-original "2400 3000 3700" --level=0 --chunk=16 --metadata=1.2 --layout=original; finish
array r0-alternate "2400 3000 3700" --level=0 --chunk=16 --metadata=1.2 --layout=alternate; finish
array r0-equal "$e" --level=0 --chunk=64 --metadata=1.1; finish
array r1-090 "$e" --level=1 --metadata=0.90; finish
array r1-10 "$e" --level=1 --metadata=1.0; finish
array r1-11 "$e" --level=1 --metadata=1.1; finish
array r1-named "$e" --level=1 --metadata=1.2 --name=data; finish
array r10-n2 "$q" --level=10 --chunk=16 --metadata=1.2 --layout=n2; finish
array r10-n2odd "$t" --level=10 --chunk=16 --metadata=1.2 --layout=n2; finish
array r10-n3 "$q" --level=10 --chunk=16 --metadata=1.2 --layout=n3; finish
array r10-f2 "$q" --level=10 --chunk=16 --metadata=1.2 --layout=f2; finish
array r10-f3 "$q" --level=10 --chunk=16 --metadata=1.2 --layout=f3; finish
array r10-o2 "$t" --level=10 --chunk=16 --metadata=1.0 --layout=o2; finish
array r4 "$t" --level=4 --chunk=16 --metadata=1.2; finish
for l in left-symmetric left-asymmetric right-symmetric right-asymmetric parity-first parity-last; do
	array r5-$l "$t" --level=5 --chunk=16 --metadata=1.2 --layout=$l; finish
done
array r5-090 "$t" --level=5 --chunk=16 --metadata=0.90; finish
for l in left-symmetric left-asymmetric right-symmetric right-asymmetric parity-first parity-last ddf-zero-restart ddf-N-restart ddf-N-continue left-symmetric-6 left-asymmetric-6 right-symmetric-6 right-asymmetric-6 parity-first-6; do
	array r6-$l "$q" --level=6 --chunk=16 --metadata=1.2 --layout=$l; finish
done
# A member that failed, and data that was written since.
array r1-stale "$e" --level=1 --metadata=1.2
mdadm --fail $real $(echo $devs | cut -d' ' -f1); mdadm --remove $real $(echo $devs | cut -d' ' -f1)
pattern newer 300 > /tmp/p; dd if=/tmp/p of=$real bs=4k conv=notrunc,fsync 2>/dev/null
sync; sed -i '/^md-r1-stale /d' sums; sum md-r1-stale $real; finish
echo "MD DONE $(wc -l < sums)"

# A volume group over three physical volumes with everything that is read.
fill() { pattern "$1" "$2" > /tmp/p; dd if=/tmp/p of="$3" bs=4k conv=fsync 2>/dev/null; }
pvs=""; for i in 0 1 2; do disk lvm-pv$i 14336; pvs="$pvs $dev"; done
set -- $pvs
vgcreate -q -s 128k vg-one $pvs
lvcreate -q -y -an -Zn -n first -l 6 vg-one $1
lvcreate -q -y -an -Zn -n hole -l 2 vg-one $1
lvextend -q -l +5 vg-one/first $1 $2
lvcreate -q -y -Zn -Wn -n stripe -i 3 -I 8k -l 9 vg-one
lvcreate -q -y -Zn -Wn -n wide-_x.y -l 60 vg-one
lvcreate -q -y -Zn -Wn --type raid1 -m 1 -n raid1 -l 8 vg-one
lvcreate -q -y -Zn -Wn --type mirror -m 1 --mirrorlog core -n mirror -l 8 vg-one
lvcreate -q -y -Zn -Wn --type raid0 -i 2 -I 8k -n raid0 -l 8 vg-one
lvcreate -q -y -Zn -Wn --type raid5 -i 2 -I 8k -n raid5 -l 8 vg-one
lvcreate -q -y -Zn -Wn -n origin -l 12 vg-one
lvchange -q -ay vg-one
for l in first hole stripe wide-_x.y raid1 mirror raid0 raid5 origin; do fill $l 400 /dev/vg-one/$l; done
lvcreate -q -y -s -c 4k -n snap -l 8 vg-one/origin
fill changed 70 /dev/vg-one/origin
dd if=/tmp/p of=/dev/vg-one/snap bs=4k count=3 seek=200 conv=notrunc,fsync 2>/dev/null
lvcreate -q -y -Zn --type thin-pool -c 64k -l 24 --poolmetadatasize 2m --poolmetadataspare n -n pool vg-one
lvcreate -q -y -V 8m --thinpool pool -n thin vg-one
fill thin 150 /dev/vg-one/thin
dd if=/tmp/p of=/dev/vg-one/thin bs=4k count=40 seek=1500 conv=notrunc,fsync 2>/dev/null
lvcreate -q -y -s -kn -n thinsnap vg-one/thin
lvchange -q -ay vg-one/thinsnap
fill later 40 /dev/vg-one/thin
lvcreate -q -y -V 1m --thinpool pool -n thin2 vg-one
lvcreate -q -y -Zn -Wn -n cached -l 8 vg-one
lvcreate -q -y --type cache-pool -l 8 --poolmetadatasize 2m --poolmetadataspare n -n fast vg-one && lvconvert -q -y --type cache --cachepool fast vg-one/cached
lvs -a -o name,attr,size,seg_type,devices,uuid vg-one
for l in first hole stripe wide-_x.y raid1 mirror raid0 raid5 origin snap thin thinsnap thin2; do sum lvm-$l /dev/vg-one/$l; done
sync; vgchange -q -an vg-one; pvs -o pv_name,pv_uuid; vgcfgbackup -q -f lvm.cfg vg-one
for d in $pvs; do losetup -d $d; done

# Another group of the same name.
disk twin-pv 4096; d=$dev
vgcreate -q -s 128k vg-one $d
lvcreate -q -y -Zn -Wn -n first -l 3 vg-one; lvchange -q -ay vg-one/first
fill twin 96 /dev/vg-one/first; sum twin-first /dev/vg-one/first
sync; vgchange -q -an vg-one; losetup -d $d

# Debian on two disks: /boot on md 1.0, the rest in LVM on md 1.2, all mirrored.
pvs=""; for i in 0 1; do
	disk stack-vd$i 40960; losetup -d $dev
	printf 'label: gpt\nsize=1MiB,type=21686148-6449-6E6F-744E-656564454649\nsize=9MiB,type=A19D880F-05FC-4D3B-A006-743F0F84911E\ntype=A19D880F-05FC-4D3B-A006-743F0F84911E\n' | sfdisk -q stack-vd$i
done
part() { dev=/dev/loop$next; [ -b $dev ] || mknod $dev b 7 $next; losetup -o $2 $dev $1; next=$((next+1)); dmsetup create $3 --table "0 $4 linear $dev 0"; dmsetup mknodes; dev=/dev/mapper/$3; }
sfdisk -d stack-vd0
part stack-vd0 $((4096*512)) b0 18432; b0=$dev; part stack-vd1 $((4096*512)) b1 18432; b1=$dev
part stack-vd0 $((22528*512)) r0 57344; r0=$dev; part stack-vd1 $((22528*512)) r1 57344; r1=$dev
mdadm --create /dev/md0 --run --quiet --auto=md --homehost=host --level=1 --raid-devices=2 --metadata=1.0 $b0 $b1
mdadm --create /dev/md1 --run --quiet --auto=md --homehost=host --level=1 --raid-devices=2 --metadata=1.2 $r0 $r1
mdadm --wait /dev/md0 /dev/md1
vgcreate -q -s 128k debian-vg /dev/md1
lvcreate -q -y -Zn -Wn -n root -L 12m debian-vg
lvcreate -q -y -Zn -Wn -n home -L 8m debian-vg
lvchange -q -ay debian-vg
/sbin/mke2fs -q -F -t ext4 -L boot -U 00000000-0000-4000-8000-000000000001 -E lazy_itable_init=0 /dev/md0
/sbin/mke2fs -q -F -t ext4 -L root -O ^has_journal /dev/debian-vg/root
/sbin/mke2fs -q -F -t ext4 -L home -O ^has_journal /dev/debian-vg/home
mkdir /m; mount -t ext4 /dev/debian-vg/root /m && mkdir -p /m/etc /m/boot /m/home /m/srv/data && mount -t ext4 /dev/md0 /m/boot && mount -t ext4 /dev/debian-vg/home /m/home && {
	echo debian > /m/etc/hostname; echo kernel > /m/boot/vmlinuz; mkdir -p /m/home/anna/export; echo letter > /m/home/anna/letter; echo shared > /m/home/anna/export/file
	printf '/dev/mapper/debian--vg-root / ext4 errors=remount-ro 0 1\nUUID=00000000-0000-4000-8000-000000000001 /boot ext4 defaults 0 2\n/dev/debian-vg/home /home ext4 defaults 0 2\n/home/anna/export /srv/data none bind 0 0\n' > /m/etc/fstab
	umount /m/boot; umount /m/home; umount /m; }
for x in md0 md1 debian-vg/root debian-vg/home; do sum stack-$x /dev/$x; done
sync; vgchange -q -an debian-vg; mdadm --stop /dev/md0; mdadm --stop /dev/md1
cat sums
tar cf /dev/vda *
sync
echo "VM DONE"
poweroff -f
