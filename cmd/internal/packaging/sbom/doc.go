// Sbom says what a Go program is made of, by the list of modules that the Go
// tool put into it:
//
//	sbom PROGRAM VERSION            CycloneDX 1.5, in JSON
//	sbom --licenses PROGRAM         the licences of all modules, as text
//
// It reads only the program and the module cache. The same program gives the
// same bytes, so the document has neither a time nor a serial number.
package main
