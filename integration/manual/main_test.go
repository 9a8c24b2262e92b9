package manual

import (
	"os"
	"testing"

	"cairn/integration/lab/product"
)

// TestMain builds the program.
func TestMain(m *testing.M) { os.Exit(product.Run(m.Run)) }
