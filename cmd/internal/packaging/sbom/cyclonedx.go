package main

import (
	"path"
	"runtime/debug"
	"strings"
)

// bom is the part of CycloneDX 1.5 that is used; the names are the standard's.
type bom struct {
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// dependency: the program is linked with all of the modules; which of them
// needs which is not in the program.
type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// describe lists the program, Go's standard library, and the modules.
func describe(info *debug.BuildInfo, version string) bom {
	program := component{Type: "application", Ref: info.Path, Name: path.Base(info.Path), Version: version}
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS", "GOARCH", "GOAMD64", "CGO_ENABLED", "vcs.revision", "vcs.time", "vcs.modified":
			program.Properties = append(program.Properties, property{Name: "cairn:build:" + s.Key, Value: s.Value})
		}
	}
	list := []component{library("std", strings.TrimPrefix(info.GoVersion, "go"), "")}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		list = append(list, library(m.Path, m.Version, m.Sum))
	}
	all := dependency{Ref: program.Ref}
	for _, c := range list {
		all.DependsOn = append(all.DependsOn, c.Ref)
	}
	return bom{Format: "CycloneDX", SpecVersion: "1.5", Version: 1, Metadata: metadata{Component: program}, Components: list, Dependencies: []dependency{all}}
}

// library describes a module. Its sum is that of go.sum, a hash over the hashes
// of its files: none of those that CycloneDX knows, and so a property.
func library(name, version, sum string) component {
	purl := "pkg:golang/" + strings.ReplaceAll(name, "!", "%21") + "@" + strings.ReplaceAll(version, "+", "%2B")
	c := component{Type: "library", Ref: purl, Name: name, Version: version, PURL: purl}
	if sum != "" {
		c.Properties = []property{{Name: "cairn:go.sum", Value: sum}}
	}
	return c
}
