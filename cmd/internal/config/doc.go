// Package config is what this host knows by itself: where Cairn keeps its
// files here, which VMs it backs up, and in which jobs.
//
// In the configuration folder (/etc/cairn) are
//
//	cairn.toml     [host], [repository.NAME], [vm.NAME], [discover.NAME], [job.NAME],
//	               [notify]
//	cairn.d/*.toml more of the same: all files count as one, in the order of their
//	               names; what two of them define is an error that names both
//	vms.d/*.toml   one VM in each file, as `cairn vm add` writes them, so that a
//	               configuration system can place and remove them one by one
//
// example.toml, which Example gives, shows every setting. All files are optional:
// the command line works without them, but for vms.d.
//
// Load is strict: an unknown setting is an error, and so is all that cannot be
// meant. It finds as much as it can at once, and says of each problem the file,
// the line and the column, what is wrong, and what to write. A file of more than
// 1 MiB is refused unread. What is allowed and probably not meant is told by
// Config.Warnings.
//
// A Config is never changed after Load; the VMs that there are now are asked for
// by Config.Find, at each run.
package config
