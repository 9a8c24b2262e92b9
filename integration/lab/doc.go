// Package lab builds and boots the real guests that the integration tests,
// `cairn demo` and the bench use.
//
// The guest is small but honest: Debian's cloud kernel, the stock
// qemu-guest-agent, busybox as its user land, and a root filesystem that lies
// on a disk (GPT, ext4) and not in memory, so that what a backup reads is what
// the guest runs from. It boots in a few seconds without KVM.
//
// What the package promises:
//
//   - Assets builds everything once into a cache (CAIRN_LAB_CACHE, else
//     /var/cache/cairn-lab, else ~/.cache/cairn-lab) and later calls take
//     milliseconds and no network. Two processes may call it at once. A cached
//     build is never changed, because running guests have it as their backing
//     file; remove the directory by hand when no guest runs.
//   - A Guest never outlives its test: QEMU dies with the context given to
//     Start, with Close, and with the process that started it.
//   - Commands in the guest run over its serial console and the test has a
//     QMP monitor of its own, so that nothing the product uses (its monitor,
//     the guest agent, the port of the inside agent) is taken.
//
// Tests that judge what QEMU does run on two versions of it: the installed one
// and the one of Debian's backports, which is unpacked into the cache
// (BackportsQEMU, labtest.EachQEMU). A Bare guest is a QEMU alone, with any
// disks, there in a tenth of a second.
//
// The guest's disks:
//
//	vda  512 MiB, GPT: partition 1 a BIOS-boot dummy, partition 2 ext4
//	     "root" on / with users, many small files and every awkward kind of
//	     file (tree.go lists them)
//	vdb  256 MiB, ext4 "srv" without a partition table, on /srv
//
// Files given by Options.Inject appear in the guest under /run/inject, which
// is in memory: they change no disk. An executable named cairn-agent there is
// started and respawned with the port org.cairn.agent.0 as
// /dev/virtio-ports/org.cairn.agent.0.
package lab
