// Package product builds cairn and cairn-agent for test packages that drive
// them by their command line, and makes sure that nothing of them outlives the
// tests: mounts and guardians are processes of their own.
package product
