// Package progress draws how far long work is: a line on a terminal, JSON
// lines for programs, nothing otherwise.
package progress
