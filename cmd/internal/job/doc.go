// Package job is the story of a backup, a restore, a check and a forget: which
// room is asked in which order, and what is undone when a step fails. It computes
// nothing itself: what a restore writes is package image's.
//
// It promises: a guest that was frozen is thawed and a VM that was stopped
// goes on, on every path, also when this process is killed (see Guardian), and
// a backup that libvirt runs for a killed process is ended; a point exists
// when, and only when, its manifest is stored, and bitmaps are removed only for
// points that a later run saw committed.
package job
