// Package integration holds what no single package can: the rules about who may
// import whom, and the tests of the whole program against a real guest, which
// package lab boots.
package integration
