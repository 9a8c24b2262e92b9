package seal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind says what a key is for. Part of the on-disk format: kinds are only
// added.
type Kind string

// The kinds. What a key of a kind cannot do for want of a root is beyond who
// steals it; the rest of the table is what Cairn refuses so that nobody does
// it by mistake (FORMAT.md section 3).
const (
	// KindAll holds every root and may do everything, also change the slots.
	KindAll Kind = "all"
	// KindWrite holds no content identity: it backs up, also incrementally,
	// and cannot read guest data.
	KindWrite Kind = "write"
	// KindRestore holds every root; it neither backs up nor changes slots.
	KindRestore Kind = "restore"
	// KindHousekeeping holds the structure key alone: it lists, verifies
	// stored bytes and maps, retains and collects.
	KindHousekeeping Kind = "housekeeping"
)

// Kinds lists them.
func Kinds() []Kind { return []Kind{KindWrite, KindRestore, KindHousekeeping, KindAll} }

// ParseKind reads a kind.
func ParseKind(s string) (Kind, error) {
	if k := Kind(s); slices.Contains(Kinds(), k) {
		return k, nil
	}
	return "", fmt.Errorf("a key of kind %q is not known: write, restore, housekeeping or all", s)
}

// Errors of keys that may not do what is asked. Each wraps ErrKind.
var (
	// ErrKind: another kind of key is needed.
	ErrKind = errors.New("this needs a key of another kind")
	// ErrNoContentKey: these keys cannot read guest data.
	ErrNoContentKey = fmt.Errorf("%w: guest data cannot be read", ErrKind)
	// ErrNoBackupKey: these keys do not back up.
	ErrNoBackupKey = fmt.Errorf("%w: no backup can be made", ErrKind)
	// ErrNoManageKey: these keys do not change key slots.
	ErrNoManageKey = fmt.Errorf("%w: key slots cannot be changed", ErrKind)
)

// KindError says it in words for a person: which kind of key this is, and
// which would do.
type KindError struct {
	Have Kind
	Want []Kind
	err  error // one of the sentinels
}

// Error says what to do next.
func (e *KindError) Error() string {
	var want []string
	for _, k := range e.Want {
		want = append(want, string(k))
	}
	what := map[error]string{
		ErrNoContentKey: "cannot read guest data",
		ErrNoBackupKey:  "makes no backups",
		ErrNoManageKey:  "does not add, replace or remove keys",
	}[e.err]
	return fmt.Sprintf("a key of kind %s %s; that needs one of kind %s: name its file with --password-file; who has a key of kind %s makes one with: cairn key add --kind %s",
		e.Have, what, strings.Join(want, " or "), KindAll, want[0])
}

// Unwrap gives the sentinel.
func (e *KindError) Unwrap() error { return e.err }

// Kind says what the keys are for.
func (k *Keyring) Kind() Kind { return k.kind }

// MayRead is nil if the keys may read guest data, else an ErrNoContentKey.
func (k *Keyring) MayRead() error { return k.may(ErrNoContentKey, KindRestore, KindAll) }

// MayBackUp is nil if the keys may store guest data, else an ErrNoBackupKey.
func (k *Keyring) MayBackUp() error { return k.may(ErrNoBackupKey, KindWrite, KindAll) }

// MayManage is nil if the keys may change key slots, else an ErrNoManageKey.
func (k *Keyring) MayManage() error { return k.may(ErrNoManageKey, KindAll) }

func (k *Keyring) may(otherwise error, kinds ...Kind) error {
	if slices.Contains(kinds, k.kind) {
		return nil
	}
	return &KindError{Have: k.kind, Want: kinds, err: otherwise}
}

// HasChunkID says whether the chunk-ID key is there.
func (k *Keyring) HasChunkID() bool { return k.kind != KindHousekeeping }

// Only gives the keys that a kind needs and no others.
func (k *Keyring) Only(kind Kind) (*Keyring, error) {
	out := &Keyring{kind: kind, Structure: k.Structure}
	switch kind {
	case KindAll, KindRestore:
		if k.identity == nil {
			return nil, k.may(ErrNoContentKey, KindRestore, KindAll)
		}
		out.ChunkID, out.recipient, out.identity = k.ChunkID, k.recipient, k.identity
	case KindWrite:
		if k.recipient == nil {
			return nil, k.may(ErrNoBackupKey, KindWrite, KindAll)
		}
		out.ChunkID, out.recipient = k.ChunkID, k.recipient
	case KindHousekeeping:
	default:
		_, err := ParseKind(string(kind))
		return nil, err
	}
	return out, nil
}
