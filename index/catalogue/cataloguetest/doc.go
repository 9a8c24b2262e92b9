// Package cataloguetest makes catalogues in memory for tests: a tree is built
// and changed by paths, and what it holds at an instant becomes a point. What
// did not change between two points is one node, as in a stored catalogue.
package cataloguetest
