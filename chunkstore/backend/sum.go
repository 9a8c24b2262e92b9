package backend

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"
)

// BlankSum is in the place of an object's own sum while it is computed. Part of
// the on-disk format.
var BlankSum = strings.Repeat("0", 64)

// WithSum gives body with its sum, BLAKE3-256 in 64 hexadecimal digits, where
// BlankSum is first in it.
func WithSum(body []byte) []byte {
	return bytes.Replace(body, []byte(BlankSum), fmt.Appendf(nil, "%x", blake3.Sum256(body)), 1)
}

// SumHolds says whether sum, which is in body, is what WithSum gave it.
func SumHolds(body []byte, sum string) bool {
	blank := bytes.Replace(body, []byte(sum), []byte(BlankSum), 1)
	return fmt.Sprintf("%x", blake3.Sum256(blank)) == sum
}
