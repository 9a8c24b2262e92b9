// Package pushtest is a guest for tests of putting files back: the real
// receiver behind the real protocol, in this process and over a unix socket. The
// guest's root directory is a folder of the host; its one service is a stand-in.
package pushtest
