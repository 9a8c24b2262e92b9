// Package objectstore starts real S3-compatible servers for tests: versitygw,
// which is small, MinIO, and a whole Ceph with RGW. The first two are built once
// from their Go modules into the lab's cache (/var/cache/cairn-lab/s3); Ceph is
// Debian's (.ci/apt-packages-rgw), which only `make campaign-rgw` installs. They
// listen on the loopback interface, keep their data in the test's temporary
// folder, and end with the test. STORE-LAB.md section 5 compares them.
package objectstore
