package packaging

import (
	"os"
	"testing"

	"cairn/integration/lab/product"
)

// TestMain builds the programs that go into the packages.
func TestMain(m *testing.M) { os.Exit(product.Run(m.Run)) }
