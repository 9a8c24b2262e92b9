// Package agent is the inside agent: what runs in a guest as cairn-agent.
//
// It answers the host's calls (package guest has the protocol): it inventories
// the guest's system objects, quiesces them, freezes the filesystems, takes the
// metadata, thaws, and writes files that the host puts back. What it promises:
//
//   - The guest is thawed: by the host's call, when the session ends in any way,
//     when the time is over that the freeze may last, and at the agent's next
//     start if it was killed.
//   - Every pre step of an application gets its post step, on all these paths.
//   - A service that was stopped for a restore is started again: by the host's
//     call, when the session ends in any way, or at the agent's next start.
//   - While the filesystems stand it writes no file, starts no program, and needs
//     no memory that is not in RAM.
//   - A session's work ends with its session, and with its deadline.
//   - It does nothing but these calls: the host cannot have it run a command that
//     the guest's operator has not written down in its configuration.
package agent
