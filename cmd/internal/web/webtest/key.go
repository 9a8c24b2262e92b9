package webtest

import (
	"context"
	"os"
	"time"

	"cairn/chunkstore/seal"
	"cairn/cmd/internal/wire"
)

// AddWriteKey adds a key to a repository that may back up and cannot read, and
// writes it to a file.
func AddWriteKey(ctx context.Context, repository, passwordFile, file string) error {
	keys, err := wire.OpenKeys(ctx, repository, wire.Secret{File: passwordFile})
	if err != nil {
		return err
	}
	defer keys.Close()
	secret, public, err := seal.NewIdentity()
	if err != nil {
		return err
	}
	to, err := seal.ParseRecipient(public)
	if err != nil {
		return err
	}
	if _, err := keys.Add(ctx, seal.KindWrite, "host", to, time.Now()); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(secret+"\n"), 0o600)
}
