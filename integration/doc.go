// Package integration holds what no single package can: the rules about who may
// import whom, and the tests of the whole program against a real guest, which
// package lab boots.
//
// Those tests drive the program by its command line alone, and see the guest
// and QEMU by ways of their own: the serial console, a second monitor, and
// qemu-img on the image files. They skip, with a reason, where the lab's
// guests cannot run.
//
//	CAIRN_LONG=1                  kill a hundred backups, most at random moments
//	CAIRN_INTEGRATION_BINARY=…    drive this program, for example one built
//	                              with -race, and not one that is built for the run
package integration
