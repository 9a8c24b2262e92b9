// Package push is the story of files that go from a point back into a running
// guest: find them, count them, ask the inside agent, stop the service they
// belong to, send them, and start the service again, whatever happened.
//
// It promises:
//
//   - Before the agent is asked for anything that changes the guest, everything
//     was found in the point and counted, and the agent has said that it can put
//     it there.
//   - A service that was stopped, or may have been, is started again on every
//     path, also when the put failed, the session broke or the command was
//     interrupted.
//   - What could not be read from the point, and what the guest could not keep,
//     is in the result. If a whole file is among it nothing is replaced.
package push
