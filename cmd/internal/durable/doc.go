// Package durable replaces small files so that a power cut leaves the old one or
// the new one, whole.
package durable
