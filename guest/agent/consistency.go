package agent

import (
	"fmt"

	"cairn/guest/object"
)

// settle gives an object its consistency, once the filesystems stand. What its
// collector promised is the best it can be:
//
//   - One of its filesystems did not stand: its files are as after a power cut,
//     or worse, whatever the application was told.
//   - A step failed: its filesystems stood, but the application was not brought
//     to rest.
func (it *item) settle(z *freezing) {
	c := &it.found.Object.Consistency
	if reason := it.moving(z); reason != "" {
		*c = object.Consistency{Level: object.Crash, Reason: object.Text(joined(reason, it.failed))}
		return
	}
	if it.failed != "" && c.Level == object.Application {
		*c = object.Consistency{Level: object.Filesystem, Reason: object.Text(it.failed)}
		return
	}
	if it.failed != "" {
		c.Reason = object.Text(joined(c.Reason, it.failed))
	}
	if c.Reason == "" {
		c.Reason = defaultReason(c.Level)
	}
}

// moving says which of its filesystems did not stand.
func (it *item) moving(z *freezing) string {
	if it.lost != "" {
		return it.lost
	}
	for _, s := range it.touched {
		if !z.stands(s) {
			return fmt.Sprintf("%s was not frozen: %s", s.name(), s.reason)
		}
	}
	return ""
}

func defaultReason(level string) string {
	switch level {
	case object.Application:
		return "the application was brought to rest, and its filesystems were frozen"
	case object.Crash:
		return "its collector promises no more"
	}
	return "its filesystems were frozen"
}
