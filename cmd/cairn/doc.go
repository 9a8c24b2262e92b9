// Command cairn backs up running QEMU/KVM virtual machines and shows every
// restore point as a directory tree. Its help says all: cairn --help.
package main
