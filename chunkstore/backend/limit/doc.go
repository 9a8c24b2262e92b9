// Package limit is a place that takes no more than so many bytes a second:
// it keeps a backup from filling the line to a repository that others need.
// Reading is not limited.
package limit
