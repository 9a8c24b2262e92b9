// Package filesystemtest is the suite that every filesystem.Reader is held to.
//
//   - Record writes down the truth about a mounted directory as the kernel
//     shows it, Populate fills one with awkward things, and LoopMount mounts
//     an image that a test made with the real mkfs.
//   - TestReader compares a Reader with a recorded Tree and tests the
//     contract of the interface: errors, cookies, ends of files, parallel use.
//   - Damage changes random bytes of an image's metadata, and WalkDamaged
//     walks the result under a deadline and limits: errors are fine there,
//     panics, endless loops and unbounded memory are not.
//
// Trees are kept in files as JSON lines (Save, Load), so that a small frozen
// image with its tree (Sample) tests a Reader where nobody may mount.
package filesystemtest
