// Package packaging has what the Debian packages bring beside the programs: the
// units, conffiles and maintainer scripts in host, and the list of the modules
// (sbom). `make deb` puts them together (.ci/deb-host, .ci/deb-agent).
//
// The packages promise: the same commit gives the same bytes; no timer runs
// that nobody enabled; a purge takes state and no repository.
package packaging
