package disktrouble

import (
	"os"
	"testing"

	"cairn/integration/lab/product"
)

func TestMain(m *testing.M) { os.Exit(product.Run(m.Run)) }
