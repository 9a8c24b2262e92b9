// Package faulty makes the Nth call to a place, or to several places that are
// counted together, go wrong in a way of choice. Tests let N grow until
// a run makes fewer calls: then every call has failed once.
package faulty
