// Package hostkey keeps what a host knows of itself and of others' points in its
// state folder: the key that it signs its points with, and per repository the
// last counter that it used and the newest point of each host that it saw.
//
//	host.key          the private key, mode 0600, made at first use
//	seen/<id>.json    of a repository: counter, newest points, and points that
//	                  were here once and are gone
//
// Losing the folder costs the memory: the next run makes a new key, and points
// signed with the old one stay trusted. A file that cannot be read is an error
// of who signs, and no more than a warning for who reads.
package hostkey
