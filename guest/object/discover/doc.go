// Package discover finds system objects by a guest's files alone: its
// configuration, its package database, its data directories. The inside agent
// uses it on the running guest, and adds what only a running one can tell; on a
// restore point without an agent's metadata it is all there is, and what it
// gives is then called derived.
//
// What it finds, and the roles of its paths:
//
//	postgresql@15-main   a cluster: data, wal (if elsewhere), tablespace-OID, config, log
//	mysql                MySQL, MariaDB: data, innodb, wal, undo, binlog, database-NAME, config, log
//	redis, redis@6380    data, config, log
//	nginx, apache        config, site-NAME (document roots), certificate, log
//	containers/NAME      of Docker and Podman: layer-0 (what it wrote), layer-1 … (its
//	                     image) or rootfs; volume-NAME, bind-DESTINATION, compose, config
//	users/NAME           of people: home
//	packages             config; their database is no path, but a detail
//
// A second path of a role gets a number: "config-2". A directory that is the
// system's as a whole ("/", "/usr", "/var/lib") is never an object's path, whatever
// a configuration says: it is listed in the detail "left_out". No document has a
// secret in it: no password, no key, no environment or argument of a container.
//
// It promises that a hostile tree costs bounded time and memory, and that what
// it gives can be put into a document (object.Encode).
package discover
