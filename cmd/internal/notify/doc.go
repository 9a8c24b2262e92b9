// Package notify tells people of problems: by a webhook, by a mail program, or both.
//
// A problem is something that should not be: a backup, gc or check that failed, a
// VM that is late, damage, a configuration that is wrong. It has a key. Each
// problem is told of once, again after Config.Remind while it goes on, and once
// when it is over. All that comes within a minute is in one message.
//
// # What a kill leaves
//
// Each way (webhook, mail) has a ledger: a small file in the folder Options.Dir,
// with the problems that it knows, when it told of each, and the last run of the
// book that it has seen. It is written before a message is sent and after it was
// taken. After a kill the runs since then are looked at, so what failed and went
// well again meanwhile is told as well. A message that was taken, and not written
// down before a kill, is sent a second time, with the same ID.
//
// A way that does not answer is tried again, with waits that double up to 15
// minutes and jitter, for as long as it takes; meanwhile its ledger goes on.
//
// # The webhook
//
// A POST with Content-Type application/json, the body a Message. With a secret,
// Cairn-Signature is "sha256=" and the hexadecimal HMAC-SHA256 of the body; the
// body has an ID and a time, so that a replay is seen. Certificates are verified,
// no redirection is followed, and any answer but 2xx is a failure.
//
// # The mail
//
// The program gets a mail (RFC 5322, plain text) on its stdin, and from the
// environment PATH, HOME and LANG only. An exit code other than 0 is a failure.
package notify
