// Package webtest makes a world for tests of the page: a real repository with
// points of a real filesystem, whose files have hostile names and damage, and a
// daemon that is made up. webdemo shows it.
package webtest
