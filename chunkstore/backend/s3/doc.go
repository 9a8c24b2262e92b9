// Package s3 is a bucket of S3-compatible object storage, or a prefix in it, as
// a place: MinIO, Ceph RGW, versitygw, SeaweedFS, Garage, Amazon S3. It is what
// many hypervisor hosts share.
//
// Put creates and never overwrites: PUT with "If-None-Match: *", in one request
// and never in parts (some engines ignore the condition when parts are put
// together). The body's MD5 is in the signed headers, so an engine refuses what
// was changed on the way. Answer 412 does not say who created the object, nor
// does a lost answer say whether it was created: in both cases the slot is read,
// and the same bytes are ours. Every object of Cairn carries a nonce or a
// random key, so two writers never have the same bytes by chance.
//
// Every request has a deadline, by its size. What another try may change is
// tried again for some minutes, with exponential back-off and jitter: no answer,
// cut answers, 5xx, and those of the 4xx that say "again" (408, 429, and 409
// where two conditional writers met). Other 4xx answers, certificates and full
// engines are final. The context ends a wait at once.
//
// Credentials come from where S3 programs look for them (credentials.go), are
// never in a repository, an argument, a log or an error, and are only used to
// sign.
//
// Whether an engine keeps what this package needs of it is measured by package
// engine, for which Inspect looks at what only S3 has: versions and locks.
// POLICIES.md has the rights that hosts should have.
package s3
