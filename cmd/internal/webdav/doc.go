// Package webdav shares the restore points read-only without FUSE, as the mount
// shows them (package fs), over WebDAV (RFC 4918, by golang.org/x/net/webdav).
//
//	/REPOSITORY/VM/latest/fs/etc/hostname
//
// It promises:
//
//   - Nothing can be written: what is not OPTIONS, GET, HEAD or PROPFIND is answered
//     405. There are no locks (class 1).
//   - WebDAV has no symbolic links: a link is what it leads to, in its own point. One
//     that leads nowhere is not listed, and neither is a folder that the path has
//     been through: no client that copies folders goes round. No more than eight
//     links to folders are followed in one path. Device nodes, sockets and FIFOs
//     have nothing to show and are not listed either.
//   - Damage is 5xx, and never a file that ends early or a folder that lacks
//     something: what is found while the body is sent cuts the connection. A damaged
//     file is listed, with no size if that is lost, and fails when it is read.
//   - What a store may keep waiting has a deadline (Options.Deadline), then 504; so has
//     a client that does not take what it asked for. At most 32 requests are
//     answered at a time, and 4 listings; others get 503.
//   - A listing is of one folder (Depth 0 or 1; infinity is refused), with at most
//     50,000 entries.
//   - What a guest wrote is sent as application/octet-stream, to be saved, in a
//     sandbox: it does not become a page of ours.
//
// point.json, changes and an object's object.json are made when somebody looks. A
// listing waits two seconds for each, and leaves out what is not ready: it can be
// read by its name, and is in the next listing.
package webdav
