package notify

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// envChild makes the test binary a daemon: the folder, the webhook, and how many
// runs there shall be in all.
const envChild = "CAIRN_TEST_NOTIFY"

func TestMain(m *testing.M) {
	if setting := os.Getenv(envChild); setting != "" {
		if err := child(setting); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child goes on with the runs of a book, and tells of them. Each third VM fails; of
// those each second goes well with the next run. It ends by a kill.
func child(setting string) error {
	part := strings.Split(setting, " ")
	total, err := strconv.Atoi(part[2])
	if err != nil {
		return err
	}
	book, err := runs.Open(filepath.Join(part[0], "book"))
	if err != nil {
		return err
	}
	status := func() runs.Status {
		s := runs.Status{Host: "host1", Version: "1", Now: time.Now(), Repositories: []runs.Repository{{Name: "main"}}}
		for i := range total {
			s.VMs = append(s.VMs, runs.VM{Name: vmOf(i), Jobs: []string{"nightly"}})
		}
		return s
	}
	ended := make(chan error, 1)
	go func() {
		ended <- Run(context.Background(), Options{Config: &config.Notify{Webhook: part[1], Remind: config.DefaultRemind}, Dir: filepath.Join(part[0], "state"), Book: book, Status: status,
			Log: slog.New(slog.DiscardHandler), gather: 20 * time.Millisecond, tick: 5 * time.Millisecond, firstRetry: 5 * time.Millisecond})
	}()
	for { // what ends before the first ledger is there is history
		if _, err := os.Stat(filepath.Join(part[0], "state", "notify-webhook.json")); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for i := len(book.Runs(1<<20, nil)); i < total; i++ {
		r := runs.Run{ID: runs.NewID(), Kind: runs.Backup, VM: vmOf(i), Repository: "main", Started: time.Now(), Ended: time.Now(), Outcome: runs.Done}
		if fails(i) {
			r.Outcome, r.Reason = runs.Failed, "because"
		}
		if err := book.End(r); err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return <-ended
}

// vmOf gives the VM of a run: two runs in a row are one VM's.
func vmOf(i int) string { return fmt.Sprint("vm", i/2) }

// fails: of six runs the first (then the VM goes well), the fourth (it went well
// before), and the fifth and sixth.
func fails(i int) bool { k := i % 6; return k == 0 || k >= 3 }

// TestNothingIsLostInKills kills the daemon again and again, also while a message
// is taken and not yet answered, and wants each failure told, and each end of one
// that was told.
func TestNothingIsLostInKills(t *testing.T) {
	kills := 12
	if os.Getenv("CAIRN_LONG") != "" {
		kills = 200
	}
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	total := kills * 12
	r := newReceiver(t, httptest.NewServer)
	r.news = make(chan struct{}, 1<<20)
	dir := t.TempDir()
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", envChild, dir, r.URL, total))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	kill := func(cmd *exec.Cmd) {
		_ = cmd.Process.Kill() // it may have failed by itself: Wait tells
		_ = cmd.Wait()
	}
	for range kills {
		cmd := start()
		time.Sleep(time.Duration(20+rnd.IntN(120)) * time.Millisecond)
		r.mu.Lock()
		r.fail = rnd.IntN(3)
		r.mu.Unlock()
		kill(cmd)
	}
	last := start()
	defer kill(last)
	told := func() (began, over map[string]int) {
		began, over = map[string]int{}, map[string]int{}
		for _, m := range r.messages() {
			for _, p := range m.Problems {
				if p.State == "over" {
					over[p.VM]++
				} else {
					began[p.VM]++
				}
			}
		}
		return began, over
	}
	waitLong(t, func() (missing []string) {
		began, over := told()
		for i := range total {
			vm := vmOf(i)
			if fails(i) && began[vm]+over[vm] == 0 {
				missing = append(missing, fmt.Sprintf("run %d: %s failed", i, vm))
			}
			if i%6 == 1 && over[vm] == 0 {
				missing = append(missing, fmt.Sprintf("run %d: %s is well again", i, vm))
			}
		}
		return missing
	})
	began, over := told()
	repeated := 0
	for _, list := range []map[string]int{began, over} {
		for _, n := range list {
			repeated += n - 1
		}
	}
	t.Logf("%d kills, %d runs, %d messages, %d VMs told, %d over; %d times something was told again", kills, total, len(r.messages()), len(began), len(over), repeated)
	for vm := range over {
		if i, _ := strconv.Atoi(strings.TrimPrefix(vm, "vm")); i%3 != 0 {
			t.Errorf("%s is over, and still fails", vm)
		}
	}
	if repeated > kills*20 {
		t.Errorf("%d things were told again in %d kills", repeated, kills)
	}
}

func waitLong(t *testing.T, missing func() []string) {
	t.Helper()
	for until := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		list := missing()
		if len(list) == 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("%d things are not told within a minute: %v", len(list), list[:min(len(list), 5)])
		}
	}
}
