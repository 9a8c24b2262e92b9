// Package guest is the host's side of what happens inside a guest.
//
// Agent speaks with the stock qemu-guest-agent over the unix socket that QEMU
// gives its virtio-serial port. That agent has no sessions: whatever a client
// before us asked is still answered, a command sent to a hung agent is
// executed when it wakes up, and half a JSON line of a dead client spoils the
// next one. What the package promises:
//
//   - Every conversation begins, and begins again after every time-out, with
//     the byte 0xFF and a guest-sync-delimited with a random number; all that
//     comes before its answer is thrown away. An answer is never taken for the
//     answer to another question.
//   - Every call ends: by its context's deadline, or by a default one.
//   - What the agent says is a claim of the guest. Answers are bounded (1 MiB,
//     32 levels deep), lists and names too, and sizes that cannot be are left
//     out. Hostile answers give ErrBadAnswer.
//   - Once a freeze was sent, Guard.Release thaws, however the freeze ended.
//     It goes on until the agent has answered that it is thawed, or until its
//     context ends; then the error says what is known, so that a journal on the
//     host can try again.
//
// Freezing, in this order: Dial (which syncs) → journal "freezing" →
// Guard.Freeze → the point in time → Guard.Release with a context of its own →
// clear the journal. At the host's next start: Thaw for each journal entry.
//
// A frozen agent answers to Ping, Info, Status and Thaw only: collect what else
// is wanted before.
//
// Inside speaks with Cairn's own agent, cairn-agent (package guest/agent), in the
// protocol of protocol.go, which that imports from here. It promises the same:
// a call ends by its deadline, whatever the agent does; answers are bounded and
// checked; InsideGuard thaws on every path. One thing is simpler: that agent has
// sessions, and a new one undoes what the one before has left, so to reach it is
// to thaw.
//
// Locks: an Agent lets one call at a time through; a Guard's lock is taken
// before its Agent's. Source of the protocol: QEMU's docs/interop/qemu-ga-ref
// and qga/qapi-schema.json.
package guest
