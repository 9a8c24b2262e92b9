// Webdemo shows the page with a made-up daemon and a real repository, for those who
// work on the page:
//
//	go run ./cmd/internal/web/webdemo [127.0.0.1:8420]
package main
