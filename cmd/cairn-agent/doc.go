// Command cairn-agent is the inside agent: it runs in a guest, answers the
// calls of cairn on the host, and brings the guest to rest for a restore point.
// Its help says all: cairn-agent --help.
package main
