package notify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/cmd/internal/runs"
)

// Kinds of problems. They are part of what a webhook gets: they are only added to.
const (
	KindFailure    = "failure"
	KindLate       = "late"
	KindDamage     = "damage"
	KindAudit      = "audit" // a bitmap that lied
	KindConfig     = "config"
	KindJob        = "job"
	KindTrouble    = "trouble"    // a libvirt that does not answer, say
	KindRepository = "repository" // it cannot be opened
	KindPlaces     = "places"     // of a repository, that are away
	KindTest       = "test"
)

// Problem is something that should not be.
type Problem struct {
	Key        string    `json:"key"` // the same for as long as it goes on
	Kind       string    `json:"kind"`
	VM         string    `json:"vm,omitempty"`
	Repository string    `json:"repository,omitempty"`
	Text       string    `json:"text"`
	Since      time.Time `json:"since"`
}

// maxText bounds a problem's words, in characters.
const maxText = 500

// clean makes one line of any text.
func clean(text string) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "\uFFFD"), func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' || r == '\u0085' }), " ")
	if r := []rune(text); len(r) > maxText {
		text = string(r[:maxText-1]) + "…"
	}
	return text
}

// failure is the problem that a failed run is.
func failure(r runs.Run) Problem {
	p := Problem{Key: failureKey(r), Kind: KindFailure, VM: clean(r.VM), Repository: clean(r.Repository), Since: r.Ended}
	subject := fmt.Sprintf("the %s of repository %s", r.Kind, r.Repository)
	switch {
	case r.VM != "":
		subject = fmt.Sprintf("%s: the %s into repository %s", r.VM, r.Kind, r.Repository)
	case r.Job != "":
		subject = fmt.Sprintf("job %s: the %s in repository %s", r.Job, r.Kind, r.Repository)
	}
	p.Text = clean(fmt.Sprintf("%s failed: %s", subject, orNothing(r.Reason)))
	return p
}

// failureKey is the same for runs of which one makes up for the failure of another:
// of a VM into a repository, of a job's forget, and of what is done to a repository.
func failureKey(r runs.Run) string {
	switch r.Kind {
	case runs.Backup:
		return "failure/backup/" + r.VM + "/" + r.Repository
	case runs.Forget:
		return "failure/forget/" + r.Job + "/" + r.Repository
	}
	return "failure/" + string(r.Kind) + "/" + r.Repository
}

func auditKey(r runs.Run) string { return "audit/" + r.VM + "/" + r.Repository }

func orNothing(reason string) string {
	if reason == "" {
		return "it gave no reason; see the run's log"
	}
	return reason
}

func audit(r runs.Run) Problem {
	return Problem{Key: auditKey(r), Kind: KindAudit, VM: clean(r.VM), Repository: clean(r.Repository), Since: r.Ended,
		Text: clean(fmt.Sprintf("%s: %d chunks had changed that its bitmaps call unchanged: something writes to an image behind QEMU's back. That run read everything; incremental points since it began may be wrong", r.VM, r.Point.Wrong))}
}

func damage(repository string, findings int, since time.Time) Problem {
	return Problem{Key: "damage/" + repository, Kind: KindDamage, Repository: clean(repository), Since: since,
		Text: clean(fmt.Sprintf("repository %s: the last check found %d pieces of damage; its run lists them. cairn check --repair mends what parity can", repository, findings))}
}

// conditions gives the problems that there are now, but for those that a run was:
// a ledger follows the runs.
func conditions(s runs.Status) (list []Problem) {
	at := s.Now
	if s.Problem != "" {
		list = append(list, Problem{Key: "config", Kind: KindConfig, Since: at, Text: clean("the configuration is wrong, and the one before it holds (cairn config check): " + s.Problem)})
	}
	for _, v := range s.VMs {
		if v.Late && !catchingUp(s, v.Name) {
			text := fmt.Sprintf("%s: no good backup since the last one was due", v.Name)
			if v.LastGood != nil {
				text += ": the last one ended " + v.LastGood.Ended.UTC().Format(timeText)
			}
			list = append(list, Problem{Key: "late/" + v.Name, Kind: KindLate, VM: clean(v.Name), Since: at, Text: clean(text)})
		}
	}
	for _, t := range s.Troubles {
		list = append(list, Problem{Key: "trouble/" + t.Key, Kind: KindTrouble, Since: at, Text: clean(t.Text)})
	}
	for _, j := range s.Jobs {
		told := slices.ContainsFunc(s.Troubles, func(t runs.Trouble) bool { return t.Text == j.Problem }) // once for all jobs
		if j.Problem != "" && !told {
			list = append(list, Problem{Key: "job/" + j.Name, Kind: KindJob, Since: at, Text: clean(fmt.Sprintf("job %s: %s", j.Name, j.Problem))})
		}
	}
	for _, r := range s.Repositories {
		list = append(list, ofRepository(r, at)...)
	}
	return list
}

// catchUpFor is for how long after its start a daemon may make up for what the host
// was off for, and nobody is told that it is late.
const catchUpFor = time.Hour

// catchingUp says whether a VM that is late is about to be backed up, by a daemon
// that started a while ago.
func catchingUp(s runs.Status, vm string) bool {
	is := func(r runs.Run) bool { return r.Kind == runs.Backup && r.VM == vm }
	return s.Now.Sub(s.Since) < catchUpFor &&
		(slices.ContainsFunc(s.Waiting, is) || slices.ContainsFunc(s.Running, func(l runs.Live) bool { return is(l.Run) }))
}

// timeText is how times are written in mails.
const timeText = "2006-01-02 15:04 UTC"

func ofRepository(r runs.Repository, at time.Time) (list []Problem) {
	if r.Findings > 0 {
		since := at
		if r.LastCheck != nil {
			since = r.LastCheck.Ended
		}
		list = append(list, damage(r.Name, r.Findings, since))
	}
	if r.Problem != "" {
		list = append(list, Problem{Key: "repository/" + r.Name, Kind: KindRepository, Repository: clean(r.Name), Since: at, Text: clean(fmt.Sprintf("repository %s: %s", r.Name, r.Problem))})
	}
	if len(r.Away) > 0 {
		list = append(list, Problem{Key: "places/" + r.Name, Kind: KindPlaces, Repository: clean(r.Name), Since: at,
			Text: clean(fmt.Sprintf("repository %s: %d of %d places did not answer when it was last used: %s", r.Name, len(r.Away), r.Places, strings.Join(r.Away, ", ")))})
	}
	return list
}
