package agent

import (
	"os"
	"testing"

	"cairn/guest/agent/stagetest"
)

// modeVariable has the test program be an agent that will be killed.
const modeVariable = "CAIRN_TEST_AGENT"

func TestMain(m *testing.M) {
	stagetest.Main()
	if os.Getenv(modeVariable) != "" {
		agentMain(os.Args[1:])
		return
	}
	os.Exit(m.Run())
}
