package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"cairn/cmd/internal/config"
)

// sendTimeout is how long a way may take for one message.
const sendTimeout = time.Minute

// maxSecret bounds the file of a secret.
const maxSecret = 64 << 10

// webhook posts messages.
type webhook struct{ config *config.Notify }

func (w webhook) name() string { return "webhook" }

func (w webhook) send(ctx context.Context, m Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	client, err := w.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.config.Webhook, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "cairn/"+m.Version)
	r.Header.Set("Idempotency-Key", m.ID)
	if w.config.SecretFile != "" {
		secret, err := readSecret(w.config.SecretFile)
		if err != nil {
			return err
		}
		r.Header.Set("Cairn-Signature", signature(secret, body))
	}
	answer, err := client.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) { // its words have the whole address, which may hold a token
			err = u.Err
		}
		return fmt.Errorf("the webhook at %s: %w", r.URL.Host, err)
	}
	defer answer.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 300)) // for the error only
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook at %s answered %s: %s", r.URL.Host, clean(answer.Status), clean(string(said)))
	}
	return nil
}

// client verifies certificates, and follows no redirection: what is signed is for
// the address that is configured. It is made anew for each message, so that a CA
// file may change.
func (w webhook) client() (*http.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if w.config.CAFile != "" {
		pem, err := os.ReadFile(w.config.CAFile)
		if err != nil {
			return nil, fmt.Errorf("notify: webhook_ca_file: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("notify: webhook_ca_file: %s has no certificate in PEM", w.config.CAFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// readSecret gives what is in a file, without the end of its line.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("notify: secret_file: %w", err)
	}
	defer f.Close()
	secret, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return nil, fmt.Errorf("notify: secret_file: %w", err)
	}
	if secret = bytes.TrimRight(secret, "\r\n"); len(secret) == 0 {
		return nil, fmt.Errorf("notify: secret_file: %s is empty: nothing is sent that anybody could forge", path)
	}
	return secret, nil
}

func signature(secret, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}
