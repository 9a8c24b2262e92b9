package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/chunkstore"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
)

func (a *app) keyCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "List, add, replace and remove the keys that open the repository",
		Long: `A repository has one set of roots, made by cairn init. A key is a slot in the
repository that holds some of them, sealed for a passphrase, an age identity or
an SSH key. Adding, replacing and removing keys never touches stored data.

  kind           backs up   reads guests' files   lists, checks, forgets   changes other keys
  write          yes        no                    yes                      no
  restore        no         yes                   yes                      no
  housekeeping   no         no                    yes                      no
  all            yes        yes                   yes                      yes

A write key is for a hypervisor host: it makes full and incremental backups, and
whoever steals it cannot read one byte of a guest's disk in the repository. What
every kind can read: manifests and catalogues, so names, sizes and times of files,
the VM's configuration, and what an inside agent told. With a write key one can
also tell whether a block that one has already is stored. A restore key holds the
same roots as all; that it makes no backups and changes no keys is only what cairn
refuses.

  cairn key ls
  cairn key add --kind write --label web01 --generate /etc/cairn/web01.key
  cairn key add --kind restore --recipient-file ~/.ssh/id_ed25519.pub
  cairn key add --kind housekeeping --new-password-file FILE
  cairn key passwd                      a new passphrase for the key in use
  cairn key rm 3f2a                     by the beginning of its ID
  cairn key recovery                    a new recovery key, printed once

The key in use is the one that --password-file (or CAIRN_PASSWORD_FILE, or the
passphrase asked for) opens: a file whose first line is a passphrase or an age
identity, or an SSH private key (ed25519, without a passphrase of its own).`,
		Args: func(c *cobra.Command, got []string) error {
			return usagef("write: cairn key ls, add, passwd, rm or recovery\nSee: cairn key --help")
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args refuses
	}
	c.AddCommand(a.keyLsCmd(), a.keyAddCmd(), a.keyPasswdCmd(), a.keyRmCmd(), a.keyRecoveryCmd())
	return c
}

// openKeys opens the key slots of the repository that the flags name.
func (a *app) openKeys(ctx context.Context) (*wire.Keys, error) {
	if a.repo == "" {
		return nil, usagef("no repository named: use -r FOLDER or CAIRN_REPOSITORY")
	}
	return wire.OpenKeys(ctx, a.repo, a.secret())
}

// manage opens the key slots to change them.
func (a *app) manage(ctx context.Context, f func(*wire.Keys) error) error {
	k, err := a.openKeys(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.MayManage(); err != nil {
		return err
	}
	return f(k)
}

// keyJSON is a key slot in `cairn key ls --json`.
type keyJSON struct {
	ID          string     `json:"id"`
	Kind        string     `json:"kind"` // "": not known
	Label       string     `json:"label"`
	Opens       string     `json:"opens"`
	Fingerprint string     `json:"fingerprint,omitempty"`
	Created     *time.Time `json:"created,omitempty"`
	Revoked     *time.Time `json:"revoked,omitempty"` // of a host's key: what it signed since is not trusted
	InUse       bool       `json:"in_use"`
	Verified    bool       `json:"verified"` // it is as it was written
	Error       string     `json:"error,omitempty"`
}

func (a *app) keyLsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the repository's keys", Args: noArgs,
		Long: `List the repository's keys: which kind each is, its label, how it opens, and when
it was made. No secret is needed. With one, from a file, the lines are held
against what was written: the place could have changed them otherwise, and the
hosts that sign points are listed, too (kind host).`,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.repo == "" {
				return usagef("no repository named: use -r FOLDER or CAIRN_REPOSITORY")
			}
			var k *wire.Keys
			var err error
			if a.passwordFile == "" {
				k, err = wire.ListKeys(c.Context(), a.repo)
			} else {
				k, err = a.openKeys(c.Context())
			}
			wrong := err
			if errors.Is(err, seal.ErrWrongSecret) { // who has a wrong one looks here for the right one
				k, err = wire.ListKeys(c.Context(), a.repo)
			}
			if err != nil {
				return err
			}
			defer k.Close()
			return errors.Join(a.printKeys(c.Context(), k), wrong)
		},
	}
}

// keyRows gives the keys as they are listed, and how many are not as they
// should be. Hosts are among them if the keys were opened.
func keyRows(ctx context.Context, k *wire.Keys) (rows []keyJSON, bad int, err error) {
	rows = []keyJSON{}
	for _, s := range k.Slots {
		r := keyJSON{ID: s.ID, Kind: string(k.KindOf(s)), InUse: s.ID == k.Opened}
		err := s.Err
		if err == nil {
			r.Label, r.Opens, r.Fingerprint = s.Info.Label, string(s.Info.Opens), s.Info.Fingerprint
			if at := s.Info.Created; !at.IsZero() {
				r.Created = &at
			}
			if k.Opened != "" {
				err = k.Check(s)
				r.Verified = err == nil && (!s.Bare || r.InUse)
			}
		}
		if err != nil {
			bad++
			r.Error = err.Error()
		}
		rows = append(rows, r)
	}
	if k.Opened == "" {
		return rows, bad, nil
	}
	all, err := k.Hosts(ctx)
	for _, h := range all {
		rows = append(rows, hostRow(h))
		if h.Err != nil {
			bad++
		}
	}
	return rows, bad, err
}

func (a *app) printKeys(ctx context.Context, k *wire.Keys) error {
	rows, bad, err := keyRows(ctx, k)
	if err != nil {
		return err
	}
	if bad > 0 {
		err = fmt.Errorf("%w: %d of %d keys", job.ErrDamage, bad, len(rows))
	}
	if a.json {
		return cmp.Or(a.printJSON(map[string]any{"message_type": "keys", "keys": rows}), err)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tKIND\tOPENS WITH\tMADE (UTC)\tLABEL\tNOTE")
	for _, r := range rows {
		made := "-"
		if r.Created != nil {
			made = listedTime(*r.Created)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", safe(r.ID), cmp.Or(safe(r.Kind), "?"), safe(strings.TrimSpace(r.Opens+" "+r.Fingerprint)), made, orDash(r.Label), noteOf(r))
	}
	if k.Opened == "" {
		defer a.say("no secret was given: nothing of this was verified (--password-file)")
	}
	return cmp.Or(w.Flush(), err)
}

// kindHost is the kind of a key that opens nothing: a host signs its points
// with it.
const kindHost = "host"

func hostRow(h chunkstore.Host) keyJSON {
	r := keyJSON{ID: h.ID, Kind: kindHost, Label: h.Name, Opens: "nothing: it signs points", Verified: h.Err == nil}
	if h.Err != nil {
		r.Error = h.Err.Error()
		return r
	}
	r.Created = &h.Created
	if h.Revoked != nil {
		r.Revoked = &h.Revoked.Time
	}
	return r
}

func noteOf(r keyJSON) string {
	switch {
	case r.Revoked != nil:
		return "revoked " + listedTime(*r.Revoked)
	case r.Error != "":
		return "DAMAGED: " + safe(r.Error)
	case r.InUse:
		return "in use"
	case r.Kind == "":
		return "made by an older cairn, which did not say"
	}
	return "-"
}

// newKey says whose a new key is to be.
type newKey struct {
	passwordFile, recipient, recipientFile, generate string
}

func (n *newKey) count() (given int) {
	for _, s := range []string{n.passwordFile, n.recipient, n.recipientFile, n.generate} {
		if s != "" {
			given++
		}
	}
	return given
}

// resolve gives the recipient. secret is "" where only the public half is
// known; public is what a made identity's public half is.
func (a *app) resolve(n newKey) (to seal.Recipient, secret, public string, err error) {
	switch {
	case n.recipient != "":
		to, err = seal.ParseRecipient(n.recipient)
		return to, "", "", err
	case n.recipientFile != "":
		to, err = recipientIn(n.recipientFile)
		return to, "", "", err
	case n.generate != "":
		secret, public, err = seal.NewIdentity()
	case n.passwordFile != "":
		secret, err = wire.ReadSecretFile(n.passwordFile)
	default:
		secret, err = a.typedTwice("New passphrase: ")
	}
	if err == nil {
		to, err = seal.For(secret)
	}
	return to, secret, public, err
}

// maxRecipientFile bounds a public key file in bytes.
const maxRecipientFile = 16 << 10

// recipientIn reads the one public key in a file.
func recipientIn(path string) (to seal.Recipient, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return to, err
	}
	if len(b) > maxRecipientFile {
		return to, usagef("%s: over %d bytes: name an SSH public key file (….pub), or one with an age recipient (age1…)", path, maxRecipientFile)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		return to, usagef("%s: %d keys in it, want one", path, len(lines))
	}
	if to, err = seal.ParseRecipient(lines[0]); err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return to, err
}

func (a *app) keyAddCmd() *cobra.Command {
	var kind, label string
	var n newKey
	c := &cobra.Command{
		Use: "add --kind KIND", Short: "Add a key", Args: noArgs,
		Long: `Add a key of a kind (write, restore, housekeeping or all: cairn key --help). What
opens it is one of:

  a passphrase                 asked for, or --new-password-file FILE
  a new age identity           --generate FILE; its mode is 0600, and nobody else has it
  an age key of somebody       --recipient age1…
  an SSH key of somebody       --recipient-file ~/.ssh/id_ed25519.pub

--new-password-file may also hold an age identity, or be an SSH private key. The
key in use must be of kind all.`,
		RunE: func(c *cobra.Command, _ []string) error {
			k, err := seal.ParseKind(kind)
			if err != nil {
				return usagef("--kind %s: write, restore, housekeeping or all\nSee: cairn key --help", quoted(kind))
			}
			if n.count() > 1 {
				return usagef("one of --new-password-file, --recipient, --recipient-file and --generate, not two")
			}
			if err := seal.CheckLabel(label); err != nil {
				return usagef("--label: %w", err)
			}
			return a.manage(c.Context(), func(keys *wire.Keys) error { return a.addKey(c.Context(), keys, k, label, n) })
		},
	}
	f := c.Flags()
	f.StringVar(&kind, "kind", "", "what the key is for: write, restore, housekeeping or all")
	f.StringVar(&label, "label", "", "a name for people; everybody who sees the place can read it")
	n.flags(c)
	f.StringVar(&n.recipient, "recipient", "", "an age recipient (age1…)")
	f.StringVar(&n.recipientFile, "recipient-file", "", "an SSH public key file (ssh-ed25519), or a file with an age recipient")
	f.StringVar(&n.generate, "generate", "", "make an age identity and write it to this new file")
	_ = c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"write", "restore", "housekeeping", "all"}, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	return c
}

func (n *newKey) flags(c *cobra.Command) {
	c.Flags().StringVar(&n.passwordFile, "new-password-file", "", "file whose first line is the new passphrase or age identity, or an SSH private key")
}

// errTaken refuses a secret that opens a key already: which of two it opens
// would be left to chance.
func errTaken(s chunkstore.KeySlot) error {
	return usagef("that opens key %s already: use another, or remove that one first with: cairn key rm %s", s.ID, s.ID)
}

func (a *app) addKey(ctx context.Context, keys *wire.Keys, kind seal.Kind, label string, n newKey) error {
	to, secret, public, err := a.resolve(n)
	if err != nil {
		return err
	}
	if s, ok := keys.Taken(to, secret); ok {
		return errTaken(s)
	}
	if n.generate != "" { // the file first: a key that nobody has is of no use
		if err := writeNewSecret(n.generate, secret); err != nil {
			return err
		}
	}
	id, err := keys.Add(ctx, kind, label, to, a.now())
	if err != nil {
		if n.generate != "" {
			err = errors.Join(err, os.Remove(n.generate))
		}
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"message_type": "key_added", "id": id, "kind": kind, "label": label, "opens": to.Method(),
			"fingerprint": to.Fingerprint(), "file": n.generate, "recipient": public})
	}
	_, err = fmt.Fprintf(a.stdout, "added key %s of kind %s, which opens with: %s\n", id, kind, strings.TrimSpace(string(to.Method())+" "+to.Fingerprint()))
	if n.generate != "" {
		a.say("its secret is in %s: bring it to where it is used, and use it as --password-file", n.generate)
	}
	return err
}

// writeNewSecret writes a secret to a new file, durably.
func writeNewSecret(path, secret string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(secret + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (a *app) keyPasswdCmd() *cobra.Command {
	var n newKey
	c := &cobra.Command{
		Use: "passwd", Short: "Give the key in use another passphrase", Args: noArgs,
		Long: `Replace the passphrase (or whatever opens it) of the key in use: the one that
--password-file names or that is typed first. The kind and the label stay.

The new one is stored and read back before the old one is removed. Stored data is
not touched: who knew the old passphrase and has copied the repository's folder
keys/ can open that copy, and with it all that is stored.`,
		RunE: func(c *cobra.Command, _ []string) error {
			k, err := a.openKeys(c.Context())
			if err != nil {
				return err
			}
			defer k.Close()
			return a.replaceKey(c.Context(), k, n)
		},
	}
	n.flags(c)
	return c
}

func (a *app) replaceKey(ctx context.Context, k *wire.Keys, n newKey) error {
	to, secret, _, err := a.resolve(n)
	if err != nil {
		return err
	}
	if s, ok := k.Taken(to, secret); ok {
		return errTaken(s)
	}
	old, err := chunkstore.FindSlot(k.Slots, k.Opened)
	if err != nil {
		return err
	}
	id, err := k.Add(ctx, k.Kind(), old.Info.Label, to, a.now())
	if err != nil {
		return err
	}
	if err := k.Remove(ctx, old.ID); err != nil {
		return fmt.Errorf("the new one opens (key %s), but the old one still does, too: %w; remove it with: cairn key rm %s", id, err, old.ID)
	}
	if a.json {
		return a.printJSON(map[string]any{"message_type": "key_replaced", "id": id, "replaced": old.ID, "kind": k.Kind(), "label": old.Info.Label, "opens": to.Method()})
	}
	_, err = fmt.Fprintf(a.stdout, "key %s of kind %s takes the place of %s: the old secret opens nothing here any more\n", id, k.Kind(), old.ID)
	return err
}

func (a *app) keyRmCmd() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm ID", Short: "Remove a key", Args: args(1, 1), ValidArgsFunction: a.completeKeys,
		Long: `Remove a key, by the beginning of its ID. Its secret then opens nothing here.

Nothing is encrypted anew: who has opened the key before may have kept the roots
in it, and with them reads, or writes, what they allow, as long as they can reach
the place. So take from a host that is no longer trusted its access to the place,
too; and if guests' data of the future must be safe from who had a restore key,
make a new repository. Other hosts that opened the key remember it for up to 15
minutes.

A host's key (kind host in cairn key ls: each host makes one for itself, and signs
its points with it) is revoked: points of it that are here count still, and what
it signs later does not.

The last key that can restore, and the last that can change keys, are removed
only with --force.`,
		RunE: func(c *cobra.Command, argv []string) error {
			return a.manage(c.Context(), func(k *wire.Keys) error { return a.removeKey(c.Context(), k, argv[0], force) })
		},
	}
	c.Flags().BoolVar(&force, "force", false, "remove it even if nobody can restore, or change keys, afterwards")
	return c
}

func (a *app) removeKey(ctx context.Context, k *wire.Keys, prefix string, force bool) error {
	s, err := chunkstore.FindSlot(k.Slots, prefix)
	if errors.Is(err, chunkstore.ErrNoSlot) {
		return a.revokeHost(ctx, k, prefix, err)
	}
	if err != nil {
		return err
	}
	if err := lastOf(k, s); err != nil && !force {
		return fmt.Errorf("%w. Add another first (cairn key add, cairn key recovery), or write --force", err)
	}
	if err := k.Remove(ctx, s.ID); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"message_type": "key_removed", "id": s.ID})
	}
	_, err = fmt.Fprintf(a.stdout, "removed key %s\n", s.ID)
	a.say("nothing was encrypted anew: whoever has opened that key before may have kept what it holds")
	return err
}

// revokeHost ends the trust in a host's key; none is the error when there is no
// such host.
func (a *app) revokeHost(ctx context.Context, k *wire.Keys, prefix string, none error) error {
	h, err := k.FindHost(ctx, prefix)
	if errors.Is(err, chunkstore.ErrNoSlot) {
		return none
	}
	if err == nil {
		err = k.RevokeHost(ctx, h, a.now(), "cairn key rm")
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"message_type": "host_revoked", "id": h.ID, "host": h.Name})
	}
	_, err = fmt.Fprintf(a.stdout, "revoked the host key %s of %s: points that it signed and that are here now are trusted still, later ones are not\n", h.ID, safe(h.Name))
	a.say("it opens nothing, and the host may have a key that does, and access to the place: take these from it, too")
	return err
}

// lastOf says what nobody could do without a key.
func lastOf(k *wire.Keys, gone chunkstore.KeySlot) error {
	restore, manage := false, false
	for _, s := range k.Slots {
		if s.ID == gone.ID {
			continue
		}
		kind := k.KindOf(s)
		restore = restore || kind == seal.KindAll || kind == seal.KindRestore
		manage = manage || kind == seal.KindAll
	}
	was := k.KindOf(gone)
	switch {
	case was == seal.KindWrite || was == seal.KindHousekeeping:
		return nil
	case !restore:
		return fmt.Errorf("key %s stays: of the others it is not certain that one can restore, and without one nothing here can be read again", gone.ID)
	case !manage && was != seal.KindRestore:
		return fmt.Errorf("key %s stays: of the others it is not certain that one can add or remove keys", gone.ID)
	}
	return nil
}

func (a *app) keyRecoveryCmd() *cobra.Command {
	return &cobra.Command{
		Use: "recovery", Short: "Make a new recovery key, and print it once", Args: noArgs,
		Long: `Make a new recovery key, a key of kind all, and print it: this once. Keep it on
paper or elsewhere away from this host. It is used like any other secret: as the
first line of a --password-file. Earlier recovery keys go on opening until they
are removed.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.manage(c.Context(), func(k *wire.Keys) error { return a.recoveryKey(c.Context(), k) })
		},
	}
}

func (a *app) recoveryKey(ctx context.Context, k *wire.Keys) error {
	secret, err := seal.NewRecoveryKey()
	if err != nil {
		return err
	}
	to, err := seal.For(secret)
	if err != nil {
		return err
	}
	id, err := k.Add(ctx, seal.KindAll, chunkstore.RecoveryLabel, to, a.now())
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(map[string]any{"message_type": "recovery_key", "id": id, "recovery_key": secret})
	} else {
		_, err = fmt.Fprintf(a.stdout, "Recovery key %s, shown only now (print it, keep it away from this host):\n\n    %s\n\n", id, secret)
	}
	if err != nil { // nobody has seen it
		return errors.Join(err, k.Remove(ctx, id))
	}
	for _, s := range k.Slots {
		if s.Err == nil && s.Info.Label == chunkstore.RecoveryLabel {
			a.say("the recovery key made %s opens, too; to end that: cairn key rm %s", listedTime(s.Info.Created), s.ID)
		}
	}
	return nil
}
