package config

import _ "embed"

//go:embed example.toml
var example string

// Example gives an annotated configuration.
func Example() string { return example }
