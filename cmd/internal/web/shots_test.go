package web_test

import (
	"os"
	"strings"
	"testing"

	"cairn/cmd/internal/web/webtest"
)

// TestShots takes screenshots of a running webdemo for whoever works on the page.
func TestShots(t *testing.T) {
	list := os.Getenv("WEB_SHOTS") // lines: name url width height dark
	if list == "" {
		t.Skip("WEB_SHOTS is not set")
	}
	c, err := webtest.NewChrome(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		w, h := 1280, 900
		if f[2] == "phone" {
			w, h = 360, 740
		}
		if err := c.Size(w, h, f[2] == "phone"); err != nil {
			t.Fatal(err)
		}
		if err := c.Dark(len(f) > 3); err != nil {
			t.Fatal(err)
		}
		if err := c.Go(f[1]); err != nil {
			t.Fatal(err)
		}
		if err := c.Screenshot("/tmp/shots/" + f[0] + ".png"); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(c.Said())
}
