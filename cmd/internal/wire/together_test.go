package wire

import (
	"reflect"
	"strings"
	"testing"

	"cairn/chunkstore/backend/spread"
)

func TestTogether(t *testing.T) {
	if got := Together([]string{"/proc", "s3:https://host/bucket", "/sys", "/proc/sys", "/missing", "/proc/tty"}); !reflect.DeepEqual(got, [][]string{{"/proc", "/proc/sys", "/proc/tty"}}) {
		t.Errorf("%q", got)
	}
	if got := Together([]string{"/proc", "/sys"}); len(got) > 0 {
		t.Errorf("%q", got)
	}
	for want, n := range map[string]int{"takes 2 of the 2 places that may be lost": 2, "the repository is lost; put no more than 2 places": 3} {
		if got := Risk([]string{"/a", "/b", "/c"}[:n], spread.Shards{K: 4, M: 2}); !strings.Contains(got, want) || !strings.HasPrefix(got, "/a, /b") {
			t.Errorf("%d: %s", n, got)
		}
	}
}
