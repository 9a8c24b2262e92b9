package integration

import (
	"os"
	"testing"

	"cairn/integration/lab/product"
)

// cairnEnv tells the tests where TestMain has put the program.
const cairnEnv = product.Env

// TestMain builds the program that the tests of the whole product drive. With
// CAIRN_INTEGRATION_BINARY set that one is driven instead.
func TestMain(m *testing.M) { os.Exit(product.Run(m.Run)) }
