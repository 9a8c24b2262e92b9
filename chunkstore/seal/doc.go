// Package seal holds a repository's keys and seals bytes with them.
//
// It promises: whatever Open returns was sealed with the same key, the same
// counter, the same domain and the same additional data; anything else is
// ErrAuth. No nonce is used twice: a nonce is a counter under a key that one
// object alone has.
//
// The roots (STORE-RULES.md section 3) are three, each for one job: the
// chunk-ID key, the structure key (footers, map packs, manifests) and the
// content identity, an X25519 pair of age. A data pack has a random key of
// its own that the pack stores wrapped for the content recipient. So who
// holds only the chunk-ID key, the structure key and the content recipient
// can write and deduplicate, yet not read one old guest byte.
//
// A Keyring is some of the roots, as its Kind needs them; MayRead, MayBackUp
// and MayManage say by a typed error what it is not for. A key slot holds a
// keyring, sealed for a Recipient: whom a passphrase, an age identity or an SSH
// key is. Sizes and the memory that a slot may ask for are bounded before they
// are believed. No error, and no %v of a Key, quotes a secret.
//
// This is the only package that sees key bytes.
package seal
