#!/bin/sh
# Makes arrays.tar.zst: members of md arrays and physical volumes of LVM, small,
# as Debian's kernel wrote them in a guest under TCG, with the checksum of each
# array and logical volume as that kernel read it. Needs root, the packages
# mdadm lvm2 e2fsprogs busybox-static qemu-system-x86 zstd, and Debian's cloud
# kernel as a package: make.sh KERNEL.deb [WORKDIR]
set -eu
deb=$(realpath "$1") work=${2:-$(mktemp -d)} here=$(dirname "$(realpath "$0")")
mkdir -p "$work/root" "$work/deb" && cd "$work"
dpkg-deb -x "$deb" deb
kernel=$(basename deb/boot/vmlinuz-*) && release=${kernel#vmlinuz-}
mkdir -p root/bin root/sbin root/proc root/sys root/dev root/run root/tmp root/etc/lvm root/modules
cp "$(command -v busybox)" root/bin/busybox
for p in mdadm lvm dmsetup mke2fs sfdisk; do
	bin=$(realpath "$(command -v $p || echo /sbin/$p)")
	cp "$bin" root/sbin/$p
	for l in $(ldd "$bin" | grep -o '/[^ ]*'); do mkdir -p "root$(dirname "$l")" && cp -L "$l" "root$l"; done
done
# The modules, each behind those that it needs.
depmod -b deb "$release" 2>/dev/null || true
: > root/modules/order
for m in virtio_pci virtio_blk loop dm-mod dm-snapshot dm-thin-pool dm-mirror dm-raid dm-cache dm-cache-smq linear raid0 raid1 raid10 raid456 ext4; do
	modprobe -d deb -S "$release" --show-depends $m 2>/dev/null | awk '$1 == "insmod" {print $2}' >> root/modules/all || true
done
awk '!seen[$0]++' root/modules/all | while read -r ko; do cp "$ko" root/modules/ && basename "$ko" >> root/modules/order; done
rm root/modules/all
cp "$here/guest.sh" root/init && chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet | gzip -1) > initrd
truncate -s 700M out
timeout 1500 nice qemu-system-x86_64 -accel tcg -cpu max -m 1800 -smp 1 -nographic -nodefaults -serial stdio -no-reboot \
	-kernel deb/boot/"$kernel" -initrd initrd -append "console=ttyS0 quiet panic=1 random.trust_cpu=on" \
	-drive file=out,format=raw,if=virtio,cache=unsafe < /dev/null | tee log
grep -q 'VM DONE' log
rm -rf images && mkdir images && tar -xf out -C images
tar --sort=name --mtime=@0 --owner=0 --group=0 -C images -cf - . | zstd -q -19 --long=27 -f -o "$here/arrays.tar.zst"
ls -l "$here/arrays.tar.zst"
