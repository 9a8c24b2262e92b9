// Package labtest starts the lab's guests for tests: it skips with a reason
// where they cannot run, and ends them with the test.
package labtest
