package config

import (
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultRemind is after which time a problem that goes on is told of again.
const DefaultRemind = Duration(24 * time.Hour)

// Notify says who is told of problems.
type Notify struct {
	Where Where `json:"where"`
	// Webhook is an address that gets a POST, signed with what is in SecretFile if
	// there is one.
	Webhook    string `json:"webhook,omitempty"`
	SecretFile string `json:"secret_file,omitempty"`
	CAFile     string `json:"webhook_ca_file,omitempty"` // certificates to trust beside the system's
	// Mail is a program with its arguments. It gets a mail to MailTo on its stdin.
	Mail     []string `json:"mail,omitempty"`
	MailTo   []string `json:"mail_to,omitempty"`
	MailFrom string   `json:"mail_from,omitempty"`
	Remind   Duration `json:"remind"`
}

// notify reads [notify].
func (l *loader) notify(c *Config, tables []*table) {
	for i, t := range tables {
		if i > 0 {
			t.problem("", "it is defined twice: first in %s", tables[0].where(""))
			continue
		}
		n := &Notify{Where: t.where(""), Remind: DefaultRemind}
		n.Webhook = parsed(t, "webhook", "https://alerts.example.com/cairn", webhook)
		n.SecretFile = t.absolute("secret_file", "/etc/cairn/notify.secret")
		n.CAFile = t.absolute("webhook_ca_file", "/etc/cairn/ca.pem")
		n.Mail = t.texts("mail", "/usr/sbin/sendmail")
		if len(n.Mail) > 0 && !filepath.IsAbs(n.Mail[0]) {
			t.problem("mail", "%s: write the program's absolute name, and each argument by itself, like [\"/usr/sbin/sendmail\", \"-t\"]", clip(n.Mail[0]))
		}
		for _, i := range t.list("mail_to", "root") {
			if err := mailAddress(i.text); err != nil {
				l.say(Problem{i.where, fmt.Sprintf("%s: mail_to: %s: %v", t.title, clip(i.text), err)})
				continue
			}
			n.MailTo = append(n.MailTo, i.text)
		}
		n.MailFrom = parsed(t, "mail_from", "cairn@example.com", func(s string) (string, error) { return s, mailAddress(s) })
		if remind := parsed(t, "remind", "1d", ParseDuration); remind > 0 {
			n.Remind = remind
		}
		if n.Remind < Duration(time.Minute) {
			t.problem("remind", "%s: more often than every minute is a flood: write 1d or 4h", n.Remind)
		}
		switch {
		case !t.has("webhook") && !t.has("mail"):
			t.problem("", "it tells nobody: write webhook = \"https://…\" or mail = [\"/usr/sbin/sendmail\", \"-t\"]")
		case !t.has("webhook") && (t.has("secret_file") || t.has("webhook_ca_file")):
			t.problem("", "secret_file and webhook_ca_file are for a webhook, and there is none")
		case !t.has("mail") && (t.has("mail_to") || t.has("mail_from")):
			t.problem("", "mail_to and mail_from are for mail, and no program sends it: write mail = [\"/usr/sbin/sendmail\", \"-t\"]")
		case len(n.Mail) > 1 && slices.Contains(n.Mail[1:], "-t") && !t.has("mail_to"):
			t.problem("mail", "with -t the program looks for receivers in the mail, and there are none: write mail_to = \"root\"")
		}
		t.done()
		c.Notify = n
	}
}

// webhook checks an address. What is sent names VMs and hosts: it goes in the clear
// within this host only.
func webhook(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		return "", errors.New("write an address like https://alerts.example.com/cairn")
	case u.User != nil:
		return "", errors.New("a name and a password in the address end up in logs: the receiver knows us by secret_file")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return "", errors.New("write https: others could read and forge what goes over the network in the clear")
	}
	return text, nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || host == "localhost"
}

var localUser = pattern(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$`)

// mailAddress checks what becomes a line of a mail's header.
func mailAddress(text string) error {
	if localUser().MatchString(text) {
		return nil
	}
	if a, err := mail.ParseAddress(text); err != nil || a.Name != "" || len(text) > 254 || strings.ContainsAny(text, "<>, \t") || strings.HasPrefix(text, "-") {
		return errors.New("write a mail address alone, or a user of this host: backup@example.com, root")
	}
	return nil
}

// warn looks at what [notify] names.
func (n *Notify) warn(warn warner) {
	if n.SecretFile != "" {
		st, err := os.Stat(n.SecretFile)
		switch {
		case err != nil:
			warn(n.Where, "notify: secret_file: %s: make it with: (umask 077; openssl rand -hex 32 >%s)", strings.TrimPrefix(err.Error(), "stat "), n.SecretFile)
		case st.Mode().Perm()&0o077 != 0:
			warn(n.Where, "notify: secret_file: others than its owner can read %s: chmod 600 %s", n.SecretFile, n.SecretFile)
		case st.Size() == 0:
			warn(n.Where, "notify: secret_file: %s is empty: whoever knows that could forge messages", n.SecretFile)
		}
	}
	if n.CAFile != "" {
		if _, err := os.Stat(n.CAFile); err != nil {
			warn(n.Where, "notify: webhook_ca_file: %s", strings.TrimPrefix(err.Error(), "stat "))
		}
	}
	if len(n.Mail) > 0 {
		st, err := os.Stat(n.Mail[0])
		switch {
		case err != nil:
			warn(n.Where, "notify: mail: %s: install a program that sends mail (msmtp-mta, postfix), or write another", strings.TrimPrefix(err.Error(), "stat "))
		case !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0:
			warn(n.Where, "notify: mail: %s cannot be executed", n.Mail[0])
		}
	}
}

func (p *printer) notify(n Notify) {
	p.table("notify", n.Where)
	p.set("webhook", n.Webhook)
	p.set("secret_file", n.SecretFile)
	p.set("webhook_ca_file", n.CAFile)
	p.set("mail", n.Mail)
	p.set("mail_to", n.MailTo)
	p.set("mail_from", n.MailFrom)
	p.set("remind", n.Remind)
}
