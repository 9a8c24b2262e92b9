// Package machine makes, from what a restore point says about how a VM was
// started, how a restored one is to be started beside it: QEMU's command line,
// or libvirt's domain XML.
//
// The disks are the restored ones; name, UUID and the network cards' addresses
// are new; sockets, logs and the process' file lie in a folder of the new VM.
// All else stays. What cannot be kept, or is shared with the original, is
// named in Result.Warnings; a disk that was not restored is taken out, so that
// two VMs never write to one image.
//
// The command line is hostile input: it is read within limits, nothing of it
// is executed here, and Script quotes every byte of it. Rewriting asks nobody
// and touches no file.
package machine
