package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"cairn/guest/filesystem/filesystemtest"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "witness:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	switch {
	case len(args) == 3 && (args[0] == "populate" || args[0] == "populate-filler"):
		entries, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return filesystemtest.PopulatePlain(args[1], entries, args[0] == "populate-filler")
	case len(args) == 2 && args[0] == "record":
		tree, err := filesystemtest.Record(args[1])
		if err != nil {
			return err
		}
		z := gzip.NewWriter(stdout)
		return errors.Join(tree.Save(z), z.Close())
	}
	return errors.New("usage: witness populate|populate-filler DIR ENTRIES | record DIR")
}
