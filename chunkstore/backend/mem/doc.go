// Package mem is a place in memory, for tests.
package mem
