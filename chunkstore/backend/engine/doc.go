// Package engine measures whether a place keeps what a repository needs of it,
// because not all that speak S3 do: engines were seen that let several
// concurrent creators of one name win, that list what was put only later, or
// give wrong bytes for a range (STORE-LAB.md section 5). The verdict is typed,
// says why, and is kept in the place as engine/<n>, so that every host sees
// what the last check found; that of one of a repository's places, in all of them
// as engine/<place>/<n>.
//
// A check writes small objects below engine/probe-…/ and removes them; what the
// place does not let it remove it names.
package engine
