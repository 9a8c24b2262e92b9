// Package heap bounds what the garbage collector lets lie about.
//
// Below the limit it works as it always does. Near it it works harder, and if
// what is in use alone is over it, it would work all the time, for nothing: the
// listing of 100 TiB is some 250 MiB. So the limit follows what is in use.
package heap
