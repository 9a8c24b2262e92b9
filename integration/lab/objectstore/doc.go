// Package objectstore starts real S3-compatible servers for tests: versitygw,
// which is small, and MinIO. They are built once from their Go modules into the
// lab's cache (/var/cache/cairn-lab/s3), listen on free ports of the loopback
// interface, keep their data in the test's temporary folder, and end with the
// test. Ceph RGW (Debian's 16.2, 73 packages) is not here: STORE-LAB.md section
// 5 has what was found with it by hand.
package objectstore
