package mem

import (
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/backendtest"
)

func TestContract(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return New() })
}
