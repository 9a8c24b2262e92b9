package man

import (
	"fmt"
	"strconv"
	"time"
)

// Date gives a page's date out of what reproducible builds set as
// SOURCE_DATE_EPOCH, the seconds of the source's last change. Without it the
// date is now's.
func Date(epoch string, now time.Time) (string, error) {
	if epoch != "" {
		sec, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return "", fmt.Errorf("SOURCE_DATE_EPOCH: %q is no number of seconds", epoch)
		}
		now = time.Unix(sec, 0)
	}
	return now.UTC().Format(time.DateOnly), nil
}
