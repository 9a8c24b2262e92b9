// Package config is what the guest's operator has written down for the inside
// agent in /etc/cairn-agent: agent.toml with the agent's own settings, and one
// file for each system object that no collector knows.
//
// agent.toml, all of it optional:
//
//	freeze_limit = "20s"      # the filesystems never stand longer; at most 60s
//	hook_timeout = "30s"      # of commands that have no timeout of their own
//	log_level = "info"        # debug, info, warn or error
//	disable = ["packages"]    # collectors that are not to run
//
// Any other *.toml is an object:
//
//	name = "shop"
//	title = "The shop and its cache"
//	paths = ["/srv/shop"]     # or, with names: paths = { data = "/srv/shop" }
//	pre = ["/usr/local/bin/shop", "--flush"]     # before the freeze
//	post = "/usr/local/bin/shop --resume"        # after the thaw, always; a text is for /bin/sh -c
//	stop = ["systemctl", "stop", "shop"]         # around a restore of its files
//	start = ["systemctl", "start", "shop"]
//	timeout = "30s"           # of each command
//	user = "shop"             # that runs them; default: root
//	service = "shop.service"
//
// It promises that a bad file costs only what is in it: each problem is named
// with its file and line and with what is wanted instead. A file that others
// than root may write is not read, for its commands are run as root.
package config
