package spread

import (
	"context"

	"cairn/chunkstore/backend"
)

// mutant breaks one rule.
type mutant struct {
	name      string
	shards    Shards // {}: any
	options   func(*Options)
	opened    func(*life, *Spread)
	wrap      func(*life, backend.Backend) backend.Backend
	put       func(l *life, strict bool) func(context.Context, string, []byte) error
	condemned func(*life) func(context.Context) (map[string]bool, error)
	noCheck   bool
}
