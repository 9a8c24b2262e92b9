package backend

import "context"

// Tidier is a place that notes for itself what it lacks of objects.
type Tidier interface {
	// Tidy removes what was noted of objects that are gone altogether. Those that
	// listed says were listed are not looked for.
	Tidy(ctx context.Context, listed func(name string) bool) error
}

// Tidy is the place's, if it has one.
func Tidy(ctx context.Context, b Backend, listed func(name string) bool) error {
	if t, ok := b.(Tidier); ok {
		return t.Tidy(ctx, listed)
	}
	return nil
}
