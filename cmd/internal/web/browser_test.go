package web

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/web/webtest"
	"cairn/cmd/internal/wire"
)

// One Chromium serves all tests, one after the other.
var (
	theBrowser    *webtest.Chrome
	theBrowserErr error
)

// browser gives a real Chromium that knows nothing of the test before, or skips.
func browser(t *testing.T) *webtest.Chrome {
	t.Helper()
	if theBrowser == nil && theBrowserErr == nil {
		theBrowser, theBrowserErr = webtest.NewChrome(context.Background())
	}
	if errors.Is(theBrowserErr, webtest.ErrNoChrome) {
		t.Skip(theBrowserErr)
	}
	must(t, theBrowserErr)
	c := theBrowser
	must(t, c.Call("Network.clearBrowserCookies", map[string]any{}, nil))
	must(t, c.Size(1280, 900, false))
	must(t, c.Dark(false))
	must(t, c.Go("about:blank"))
	t.Cleanup(func() { must(t, c.Go("about:blank")) }) // before the test's server ends
	c.Said()
	return c
}

// complaints leaves out what is no fault of the page.
func complaints(said []string) (out []string) {
	for _, s := range said {
		if strings.Contains(s, "GenericIssue") && !strings.Contains(s, "ContentSecurity") {
			continue // advice on autofill
		}
		out = append(out, s)
	}
	return out
}

// Every page renders in a real browser, in light and dark, on a desk and on a
// phone, without a complaint, and without anything to scroll sideways.
func TestPagesInABrowser(t *testing.T) {
	c := serve(t, nil)
	b := browser(t)
	shots := os.Getenv("CAIRN_WEB_SHOTS") // a folder, for people to look at
	for i, path := range allPages(t) {
		must(t, b.Go(c.url+path))
		for _, phone := range []bool{false, true} {
			width, height := 1280, 900
			if phone {
				width, height = 360, 740
			}
			must(t, b.Size(width, height, phone))
			must(t, b.Dark(phone == (i%2 == 0)))
			var got struct {
				Title, Style, Heading string
				Width                 int
				Wide                  string
			}
			must(t, b.Eval(`(() => { const wide = []; for (const e of document.querySelectorAll("main *")) { const r = e.getBoundingClientRect(); if (r.right > innerWidth + 1 && r.width > 0 && !e.closest(".hidden, thead")) wide.push(e.tagName + "." + e.className); }
				return {Title: document.title, Heading: document.querySelector("h1").innerText, Style: getComputedStyle(document.body).backgroundColor, Width: document.documentElement.scrollWidth, Wide: wide.slice(0, 5).join(" ")} })()`, &got))
			if got.Width > width || got.Wide != "" {
				t.Errorf("%s is %d wide of %d: %s", path, got.Width, width, got.Wide)
			}
			if !strings.Contains(got.Title, "Cairn") || got.Heading == "" || got.Style == "rgba(0, 0, 0, 0)" {
				t.Errorf("%s: %+v", path, got)
			}
			if shots != "" {
				must(t, b.Screenshot(filepath.Join(shots, fmt.Sprintf("%02d-%v.png", i, map[bool]string{true: "phone", false: "desk"}[phone]))))
			}
		}
		if said := complaints(b.Said()); len(said) > 0 {
			t.Errorf("%s: the browser complains: %s", path, said)
		}
	}
}

// The test of complaints sees what it is to see: what the policy forbids.
func TestTheBrowserComplains(t *testing.T) {
	b := browser(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><title>x</title><p style="color:red">x</p><script>window.ran = true</script><img src="https://example.invalid/x.png">`)
	}))
	defer s.Close()
	must(t, b.Go(s.URL))
	var ran bool
	must(t, b.Eval("!!window.ran", &ran))
	if said := complaints(b.Said()); len(said) == 0 || ran {
		t.Errorf("nothing is complained of, or the script ran (%v)", ran)
	}
}

// Text has enough contrast, in light and in dark (WCAG 1.4.3: 4.5).
func TestContrast(t *testing.T) {
	c := serve(t, nil)
	b := browser(t)
	id := newest(t)
	for _, dark := range []bool{false, true} {
		must(t, b.Dark(dark))
		for _, path := range []string{"/", "/vms/web01", id, id + "/files" + pathOf("/srv"), "/search?pattern=*.txt", "/repositories/main", "/login"} {
			must(t, b.Go(c.url+path))
			var bad []string
			must(t, b.Eval(`(() => {
				const parse = s => s.match(/[\d.]+/g).map(Number);
				const lum = c => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : Math.pow((v + .055) / 1.055, 2.4) }; return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]) };
				const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > .5) return c } return [255, 255, 255] };
				const out = [];
				for (const e of document.querySelectorAll("body *")) {
					if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.closest(".hidden, svg, script, style, noscript, option")) continue;
					const s = getComputedStyle(e), a = lum(parse(e.closest("svg") ? s.fill : s.color)), g = lum(ground(e));
					const ratio = (Math.max(a, g) + .05) / (Math.min(a, g) + .05);
					if (ratio < 4.5) out.push(e.tagName + "." + e.className + " " + ratio.toFixed(2) + " " + e.textContent.trim().slice(0, 30));
				}
				return [...new Set(out)].slice(0, 8) })()`, &bad))
			if len(bad) > 0 {
				t.Errorf("%s, dark %v: %q", path, dark, bad)
			}
		}
	}
}

// By the Tab key everything that can be used is reached, in order, and it is seen
// where one is.
func TestKeyboard(t *testing.T) {
	c := serve(t, nil)
	b := browser(t)
	id := newest(t)
	for _, path := range []string{"/", id + "/files" + pathOf("/srv"), "/search?pattern=app.conf&vm=web01", "/login"} {
		must(t, b.Go(c.url+path))
		var want int
		must(t, b.Eval(`window.usable = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary, pre[tabindex]")].filter(e => e.getClientRects().length && !e.closest(":not(details[open]) > :not(summary) details")); document.activeElement.blur(); window.met = []; window.usable.length`, &want))
		var notes []string
		for range want + 12 { // parts of a date are stops of their own
			must(t, b.Key("Tab"))
			var at struct {
				Index int
				Seen  bool
				Name  string
			}
			must(t, b.Eval(`(() => { const e = document.activeElement, s = getComputedStyle(e); const i = usable.indexOf(e); if (i >= 0 && !met.includes(i)) met.push(i);
				return {Index: i, Seen: s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2, Name: e.tagName + " " + (e.textContent || e.name || "").trim().slice(0, 20)} })()`, &at))
			if at.Index >= 0 && !at.Seen {
				notes = append(notes, at.Name)
			}
		}
		var met, missed []int
		must(t, b.Eval("met", &met))
		must(t, b.Eval("usable.map((e, i) => i).filter(i => !met.includes(i))", &missed))
		if len(missed) > 0 {
			var what []string
			must(t, b.Eval("usable.filter((e, i) => !met.includes(i)).map(e => e.outerHTML.slice(0, 80))", &what))
			t.Errorf("%s: %d of %d are not reached: %q", path, len(missed), want, what)
		}
		if path != "/login" {
			for i := 1; i < len(met); i++ {
				if met[i] < met[i-1] {
					t.Errorf("%s: the order is %v", path, met)
					break
				}
			}
		}
		if len(notes) > 0 {
			t.Errorf("%s: it is not seen that these have the focus: %q", path, notes)
		}
	}
	// The first stop leads over the navigation.
	must(t, b.Go(c.url+"/"))
	must(t, b.Key("Tab"))
	must(t, b.Key("Enter"))
	must(t, b.Until(`location.hash === "#main"`))
	must(t, b.Key("Tab"))
	var inside bool
	must(t, b.Eval(`document.querySelector("main").contains(document.activeElement)`, &inside))
	if !inside {
		t.Error("the skip link skips nothing")
	}
}

// A run's progress comes without loading the page again, and its end too.
func TestLiveProgressInABrowser(t *testing.T) {
	world(t)
	d, err := webtest.NewDaemon(t.TempDir(), time.Now)
	must(t, err)
	defer d.Book().Close()
	c := serve(t, func(o *Options) { o.Status, o.Book = d.Status, d.Book() })
	b := browser(t)
	d.Set(func(s *runs.Status) { s.VMs = []runs.VM{{Name: "web09", Jobs: []string{"nightly"}}} })
	must(t, b.Go(c.url+"/"))
	must(t, b.Eval("window.stays = 1", nil))
	r := webtest.NewRun("web09", time.Now())
	must(t, d.Begin(r))
	must(t, b.Until(`document.querySelector("main").innerText.includes("Backup of web09")`)) // it came by itself
	var stays int
	must(t, b.Eval("window.stays", &stays))
	if stays != 1 {
		t.Error("the page was loaded again")
	}
	must(t, b.Go(c.url+"/runs/"+r.ID))
	d.Step(r.ID, "reading vda of web09", 30<<20, 100<<20)
	must(t, b.Until(`document.querySelector("[data-step]").textContent === "reading vda of web09" && document.querySelector("progress").value === 30`))
	d.Step(r.ID, "reading vda of web09", 80<<20, 100<<20)
	must(t, b.Until(`document.querySelector("progress").value === 80 && document.querySelector("[data-progress]").textContent.includes("80 MiB of 100 MiB, 80 %")`))
	must(t, d.End(webtest.Good(r, runs.NewID()+runs.NewID(), 3*time.Second, rand.New(rand.NewPCG(1, 1)))))
	must(t, b.Until(`document.querySelector("main").innerText.includes("commit: the point is durable")`))
	if said := complaints(b.Said()); len(said) > 0 {
		t.Error(said)
	}
}

// A run that ends, one that begins, and one that does both, behind the making of a page
// and before its events: the page does not go on as it was.
func TestWhatHappensBeforeTheEventsInABrowser(t *testing.T) {
	world(t)
	d, err := webtest.NewDaemon(t.TempDir(), time.Now)
	must(t, err)
	defer d.Book().Close()
	d.Set(func(s *runs.Status) { s.VMs = []runs.VM{{Name: "web09", Jobs: []string{"nightly"}}} })
	w := world(t)
	h := New(Options{Status: d.Status, Book: d.Book(), Library: w.Library, Find: wire.Find})
	between := make(chan func(), 1)
	c := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/events") {
			select {
			case f := <-between:
				f()
			default:
			}
		}
		h.ServeHTTP(w, r)
	}))
	b := browser(t)
	begins := func() runs.Run {
		r := webtest.NewRun("web09", time.Now())
		must(t, d.Begin(r))
		return r
	}
	ends := func(r runs.Run, why string) { must(t, d.End(webtest.Bad(r, why))) }
	r := begins()
	between <- func() { ends(r, "the first one broke") }
	must(t, b.Go(c.url+"/"))
	must(t, b.Until(`!document.querySelector("[data-run]") && document.querySelector("main").innerText.includes("the first one broke")`))
	between <- func() { r = begins() }
	must(t, b.Go(c.url+"/"))
	must(t, b.Until(`document.querySelector("[data-run]")`))
	ends(r, "the second one broke")
	must(t, b.Until(`!document.querySelector("[data-run]") && document.querySelector("main").innerText.includes("the second one broke")`))
	between <- func() { ends(begins(), "the third one broke") }
	must(t, b.Go(c.url+"/"))
	must(t, b.Until(`document.querySelector("main").innerText.includes("the third one broke")`))
}

// A browser saves a file under its name, logs in by the link with the token, and
// out.
func TestLoginAndDownloadInABrowser(t *testing.T) {
	w := world(t)
	const token = "a-token-of-twenty-four-letters"
	c := listen(t, New(Options{Status: w.Daemon.Status, Book: w.Daemon.Book(), Library: w.Library, Find: wire.Find, Token: token}))
	b := browser(t)
	must(t, b.Go(c.url+"/runs"))
	must(t, b.Until(`location.pathname === "/login" && document.querySelector("#token")`))
	must(t, b.Eval(`document.querySelector("#token").value = "wrong wrong wrong wrong"; document.querySelector("#login").submit()`, nil))
	must(t, b.Until(`document.body.innerText.includes("That is not the token")`))
	must(t, b.Eval(`location.hash = "`+token+`"`, nil)) // as the link does that was pasted here
	must(t, b.Until(`location.pathname === "/runs"`))   // where it was meant to lead
	must(t, b.Call("Network.clearBrowserCookies", map[string]any{}, nil))
	must(t, b.Go("about:blank"))
	must(t, b.Go(c.url+"/login#"+token))
	must(t, b.Until(`location.pathname === "/" && document.querySelector("h1").innerText.includes("need a look")`))
	var leaks bool
	must(t, b.Eval(`document.cookie !== "" || location.href.includes("token")`, &leaks))
	if leaks {
		t.Error("the token or the session can be seen")
	}
	dir := t.TempDir()
	must(t, b.Call("Page.setDownloadBehavior", map[string]any{"behavior": "allow", "downloadPath": dir}, nil))
	must(t, b.Go(c.url+newest(t)+"/files"+pathOf("/srv/odd")))
	must(t, b.Eval(`[...document.querySelectorAll("a[download]")].find(a => a.textContent.startsWith("Größe")).click()`, nil))
	var got []os.DirEntry
	for range 100 {
		got, _ = os.ReadDir(dir)
		if len(got) == 1 && got[0].Name() == webtest.Unicode {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(got) != 1 || got[0].Name() != webtest.Unicode {
		t.Errorf("downloaded %v", got)
	} else if text, err := os.ReadFile(filepath.Join(dir, got[0].Name())); err != nil || string(text) != "x" {
		t.Errorf("%q %v", text, err)
	}
	must(t, b.Go(c.url+"/"))
	must(t, b.Eval(`document.querySelector("form[action='/logout'] button").click()`, nil))
	must(t, b.Until(`location.pathname === "/login"`))
	must(t, b.Go(c.url+"/runs"))
	must(t, b.Until(`location.pathname === "/login"`))
}
