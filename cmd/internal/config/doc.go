// Package config is what this host knows by itself: where Cairn keeps its
// files here, and which VMs it backs up.
//
// Each VM is one TOML file, vms.d/NAME.toml in the configuration folder, so
// that a configuration system can place and remove them one by one.
package config
