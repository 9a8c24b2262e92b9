package webtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Chrome is a headless Chromium that is spoken to in its DevTools protocol, over
// the two pipes of --remote-debugging-pipe: a message is JSON and a zero byte.
type Chrome struct {
	cmd  *exec.Cmd
	dir  string
	out  io.WriteCloser
	done chan struct{} // closed when Chromium is gone

	mu      sync.Mutex
	last    int
	waiting map[int]chan message
	session string
	// Said is what the pages' consoles and policies complained of.
	said   []string
	events map[string]chan json.RawMessage
}

type message struct {
	ID      int             `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// callTime bounds one call.
const callTime = 20 * time.Second

// ErrNoChrome says that there is no Chromium.
var ErrNoChrome = errors.New("chromium is not installed (apt-get install chromium)")

// NewChrome starts Chromium with one empty page. Close ends it.
func NewChrome(ctx context.Context) (*Chrome, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, ErrNoChrome
	}
	dir, err := os.MkdirTemp("", "chrome")
	if err != nil {
		return nil, err
	}
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &Chrome{dir: dir, out: ourOut, waiting: map[int]chan message{}, done: make(chan struct{}), events: map[string]chan json.RawMessage{}}
	c.cmd = exec.CommandContext(ctx, path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir="+dir, "--remote-debugging-pipe", "about:blank")
	c.cmd.ExtraFiles = []*os.File{theirIn, theirOut}                                    // 3 and 4
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // its children go with it
	c.cmd.Cancel = func() error { return syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) }
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	theirIn.Close()
	theirOut.Close()
	go c.read(ourIn)
	return c, c.attach()
}

// Close ends Chromium.
func (c *Chrome) Close() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it keeps nothing
	_ = c.cmd.Wait()
	c.out.Close()
	<-c.done
	os.RemoveAll(c.dir)
}

func (c *Chrome) read(in *os.File) {
	defer close(c.done)
	defer in.Close()
	r := bufio.NewReaderSize(in, 1<<20)
	for {
		b, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(bytes.TrimSuffix(b, []byte{0}), &m) != nil {
			continue
		}
		c.mu.Lock()
		switch {
		case m.ID != 0:
			if w := c.waiting[m.ID]; w != nil {
				delete(c.waiting, m.ID)
				w <- m
			}
		case m.Method == "Log.entryAdded" || m.Method == "Runtime.exceptionThrown" || m.Method == "Runtime.consoleAPICalled" || m.Method == "Audits.issueAdded":
			c.said = append(c.said, m.Method+" "+string(m.Params))
		default:
			if w := c.events[m.Method]; w != nil {
				select {
				case w <- m.Params:
				default:
				}
			}
		}
		c.mu.Unlock()
	}
}

// Call calls a method of the page, and gives its result to out (nil: nobody wants
// it).
func (c *Chrome) Call(method string, params, out any) error {
	body, err := json.Marshal(params)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.last++
	m := message{ID: c.last, Method: method, Session: c.session, Params: body}
	answer := make(chan message, 1)
	c.waiting[m.ID] = answer
	b, err := json.Marshal(m)
	if err == nil {
		_, err = c.out.Write(append(b, 0))
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		}
		if out != nil {
			return json.Unmarshal(m.Result, out)
		}
		return nil
	case <-c.done:
		return fmt.Errorf("%s: chromium is gone", method)
	case <-time.After(callTime):
		return fmt.Errorf("%s: no answer", method)
	}
}

type nothingAsked struct{}

// attach takes the empty page.
func (c *Chrome) attach() error {
	var made struct {
		TargetID string `json:"targetId"`
	}
	if err := c.Call("Target.createTarget", map[string]any{"url": "about:blank"}, &made); err != nil {
		return err
	}
	var got struct {
		SessionID string `json:"sessionId"`
	}
	if err := c.Call("Target.attachToTarget", map[string]any{"targetId": made.TargetID, "flatten": true}, &got); err != nil {
		return err
	}
	c.mu.Lock()
	c.session = got.SessionID
	c.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network", "Audits"} {
		if err := c.Call(domain+".enable", nothingAsked{}, nil); err != nil {
			return err
		}
	}
	return nil
}

// On gives the events of a method from now on.
func (c *Chrome) On(method string) <-chan json.RawMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := make(chan json.RawMessage, 100)
	c.events[method] = w
	return w
}

// Said gives what consoles and policies complained of, and forgets it.
func (c *Chrome) Said() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	said := c.said
	c.said = nil
	return said
}

// Go opens an address and waits until it is loaded.
func (c *Chrome) Go(url string) error {
	loaded := c.On("Page.loadEventFired")
	var got struct {
		Error string `json:"errorText"`
	}
	if err := c.Call("Page.navigate", map[string]any{"url": url}, &got); err != nil {
		return err
	}
	if got.Error != "" {
		return fmt.Errorf("%s: %s", url, got.Error)
	}
	select {
	case <-loaded:
		return nil
	case <-time.After(callTime):
		return fmt.Errorf("%s: it is not loaded", url)
	}
}

// Eval evaluates an expression of the page into out.
func (c *Chrome) Eval(expression string, out any) error {
	var got struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception *struct {
			Text string `json:"text"`
		} `json:"exceptionDetails"`
	}
	if err := c.Call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &got); err != nil {
		return err
	}
	if got.Exception != nil {
		return fmt.Errorf("%s: %s", expression, got.Exception.Text)
	}
	if out == nil || len(got.Result.Value) == 0 {
		return nil
	}
	return json.Unmarshal(got.Result.Value, out)
}

// Until waits until an expression is true.
func (c *Chrome) Until(expression string) error {
	for range 100 {
		var ok bool
		if err := c.Eval("!!("+expression+")", &ok); err == nil && ok {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("it does not become true: %s", expression)
}

// Size sets the size of the window, in CSS pixels.
func (c *Chrome) Size(width, height int, phone bool) error {
	return c.Call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}, nil)
}

// Dark prefers dark colours, or light ones.
func (c *Chrome) Dark(dark bool) error {
	value := map[bool]string{true: "dark", false: "light"}[dark]
	return c.Call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": value}}}, nil)
}

// Key presses a key: "Tab", "Enter".
func (c *Chrome) Key(key string) error {
	code := map[string]int{"Tab": 9, "Enter": 13, "Space": 32}[key]
	for _, kind := range []string{"keyDown", "keyUp"} {
		p := map[string]any{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
		if key == "Enter" && kind == "keyDown" {
			p["text"] = "\r"
		}
		if err := c.Call("Input.dispatchKeyEvent", p, nil); err != nil {
			return err
		}
	}
	return nil
}

// Screenshot writes the page as PNG, all of it, to a file.
func (c *Chrome) Screenshot(file string) error {
	var got struct {
		Data string `json:"data"`
	}
	if err := c.Call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &got); err != nil {
		return err
	}
	b, err := base64.StdEncoding.DecodeString(got.Data)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}
