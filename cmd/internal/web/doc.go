// Package web is the web page of `cairn serve`: what is backed up and how well,
// what each run did, and the files of every restore point.
//
// It shows and changes nothing: but for the login, all it answers is GET and HEAD.
//
// # Who may read
//
// Over a socket of this host the socket's mode decides, and no token is asked for.
// Over TCP every answer but the login needs the token: in a session's cookie, as
// "Authorization: Bearer TOKEN", or, for what is mounted beside the pages (WebDAV),
// as the password of basic authentication. Listen refuses addresses that other
// hosts reach unless there is a certificate. Requests that call this host by a name
// that is not one of its own are refused (DNS rebinding).
//
// A cookie is for a host name, and not for a port: whoever can make a user's browser
// open http://127.0.0.1:OTHER of his own, on the same machine, is sent it. A session
// ends after 12 hours; on a machine with users that are not trusted, use the socket.
//
// # Hostile guests
//
// Names, contents and whatever else a guest wrote are data: html/template escapes
// them, names with control characters are quoted, and files are only ever sent as
// attachments of type application/octet-stream in a sandbox. The pages load nothing
// from elsewhere and hold no script and no style but the two files of this package,
// and the content security policy says so to the browser. Paths lie in fs/tree's
// views, which they cannot leave.
//
// # Bounds
//
// Every answer has a deadline, every list a length, and so many requests at once
// read a repository: a repository that does not answer costs the requests about it,
// and no others. Downloads are streamed, with a deadline for each piece.
//
// # Downloads that meet damage
//
// A file that cannot be read to its end breaks the connection. An archive leaves out
// what cannot be read, has a list of it in CAIRN-NOT-READ.txt at its end, and then
// breaks the connection: nothing takes it for whole. Asked for "what is readable" it
// ends well.
package web
