// Package collect has the inside agent's collectors for Linux: they find the
// system objects of the running guest and bring them to rest. What can be found
// by files alone comes from guest/object/discover; here is what only a running
// guest can tell, and be told.
//
// It promises:
//
//   - Every program that is started and every answer that is waited for has a
//     deadline and a bound on what it may say. Programs run without the agent's
//     environment, as the user whom they concern, and die with their context.
//   - An object's level of consistency is "application" only for what was
//     checked; the reason says what was done, or why it is less.
//   - Nothing is held in the guest beyond the agent's death: a lock is held by a
//     connection that ends with the agent.
//   - Nothing scales with the number of the guest's files: no data is walked,
//     and sizes come from one statfs or one question each.
//   - Filesystems whose server may be gone are not looked into.
//
// A collector whose software is not there finds nothing, and says nothing.
//
// On other systems the package is empty: All gives no collectors.
package collect
