package wire

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize/english"
	"golang.org/x/sys/unix"

	"cairn/chunkstore/backend/spread"
)

// Together gives the places that are folders on one file system, so that one
// disk takes all of them: groups of two or more, in the order of specs.
func Together(specs []string) (groups [][]string) {
	at := map[uint64]int{} // of a device, in groups
	for _, spec := range specs {
		var st unix.Stat_t
		if isURL(spec) || unix.Stat(spec, &st) != nil {
			continue
		}
		i, ok := at[st.Dev]
		if !ok {
			i = len(groups)
			at[st.Dev], groups = i, append(groups, nil)
		}
		groups[i] = append(groups[i], spec)
	}
	return slices.DeleteFunc(groups, func(g []string) bool { return len(g) < 2 })
}

// Risk says in words what hangs on the file system of a group that Together gave,
// in a repository of these shards.
func Risk(group []string, shards spread.Shards) string {
	on := strings.Join(group, ", ") + " lie on one file system"
	if len(group) > shards.M {
		return fmt.Sprintf("%s: with its disk the repository is lost; put no more than %s on one", on, english.Plural(shards.M, "place", ""))
	}
	return fmt.Sprintf("%s: its disk takes %d of the %s that may be lost", on, len(group), english.Plural(shards.M, "place", ""))
}
