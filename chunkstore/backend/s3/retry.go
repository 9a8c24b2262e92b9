package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/minio/minio-go/v7"

	"cairn/chunkstore/backend"
)

// try does op, a request of n bytes, until it succeeds, is final, or p is over.
// what is for the error: "put packs/…". Errors of op that are marked final
// are given as they are.
func (b *Bucket) try(ctx context.Context, p Patience, what string, n int, op func(context.Context) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.Multiplier, wait.RandomizationFactor = p.First, p.Last, 2, 0.5
	answer := p.Answer * time.Duration(1+n/slowest)
	tries := 0
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		tries++
		attempt, stop := context.WithTimeoutCause(ctx, answer, errNoAnswer)
		defer stop()
		err := op(attempt)
		if err != nil && ctx.Err() == nil && attempt.Err() != nil {
			err = fmt.Errorf("%w within %s", errNoAnswer, answer)
		}
		if last = err; err != nil && isFinal(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(p.Total))
	var permanent *backoff.PermanentError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		if err = context.Cause(ctx); last != nil && !errors.Is(last, err) {
			err = fmt.Errorf("%w (before that: %s)", err, b.explain(last))
		}
	case errors.As(err, &permanent):
		err = b.explain(permanent.Err)
	case tries > 1:
		err = fmt.Errorf("%w (tried %d times)", b.explain(err), tries)
	default:
		err = b.explain(err)
	}
	return fmt.Errorf("%s: %s: %w", b.spec, what, err)
}

var (
	errNoAnswer = errors.New("no answer")
	// errCut: the answer ended too early.
	errCut = errors.New("the answer was cut")
	// errHidden: the engine says that an object exists, and does not show it.
	errHidden = errors.New("the engine says that it exists already, but does not show it")
	// errRange: the engine gave other bytes than those asked for.
	errRange = errors.New("the engine gave another range than the one asked for: it cannot hold a repository")
)

// isFinal says whether another try cannot change an error.
func isFinal(err error) bool {
	for _, e := range []error{backend.ErrExist, backend.ErrNotExist, errRange, http.ErrSchemeMismatch} {
		if errors.Is(err, e) {
			return true
		}
	}
	var short shortError
	var certificate *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	if errors.As(err, &short) || errors.As(err, &certificate) || errors.As(err, &authority) {
		return true
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return false // no answer, a cut one
	}
	switch answer.StatusCode {
	case 0, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	case http.StatusConflict: // two conditional writers met; who has won is said next time
		return answer.Code != "ConditionalRequestConflict" && answer.Code != "OperationAborted" && answer.Code != "Conflict"
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusInsufficientStorage:
		return true
	}
	return answer.StatusCode < 500 || isFull(answer)
}

// isFull says whether an engine means that there is no space.
func isFull(answer minio.ErrorResponse) bool {
	switch answer.Code {
	case "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "XMinioStorageInsufficientSpace":
		return true
	}
	return answer.StatusCode == http.StatusInsufficientStorage
}

// shortError: the object ends before the range does.
type shortError struct{ name string }

func (e shortError) Error() string { return e.name + ": " + io.ErrUnexpectedEOF.Error() }
func (e shortError) Unwrap() error { return io.ErrUnexpectedEOF }

// explain says what an error means and what to do next.
func (b *Bucket) explain(err error) error {
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		return b.explainAnswer(answer)
	}
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &dns):
		return fmt.Errorf("%w: is the host's name right?", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: is the engine running, and %s its address?", err, b.spec.Host)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%w: name it with s3:http://…", err)
	case errors.As(err, &certificate), errors.As(err, &authority):
		return fmt.Errorf("%w: if the certificate is of an authority of your own, name its file with --ca-file or CAIRN_CA_FILE", err)
	}
	return err
}

// maxMessage bounds what is shown of an engine's words, in bytes.
const maxMessage = 200

func (b *Bucket) explainAnswer(a minio.ErrorResponse) error {
	said := clean(a.Code) + ", " + clean(a.Message)
	switch a.Code {
	case "NoSuchBucket":
		return fmt.Errorf("%w %q: is the name right? cairn init %s --make-bucket makes it", ErrNoBucket, b.spec.Bucket, b.spec)
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "XMinioInvalidAccessKeyId":
		return fmt.Errorf("%w: the engine refuses them (%s): %s", ErrCredentials, said, noCredentials)
	case "AccessDenied", "AllAccessDisabled", "UnauthorizedAccess":
		return fmt.Errorf("the credentials do not allow it (%s): chunkstore/backend/s3/POLICIES.md has the rights that a host needs", said)
	case "RequestTimeTooSkewed", "RequestExpired":
		return fmt.Errorf("this host's clock and the engine's differ too much (%s): set the clocks right", said)
	case "AuthorizationHeaderMalformed", "InvalidRegion", "PermanentRedirect", "TemporaryRedirect":
		return fmt.Errorf("wrong region (%s): set AWS_REGION", said)
	case "NotImplemented":
		return fmt.Errorf("the engine cannot do that (%s): cairn engine check says whether it can hold a repository", said)
	}
	if isFull(a) {
		return fmt.Errorf("%w (%s): make space there and run again; nothing stored so far is lost", backend.ErrNoSpace, said)
	}
	return fmt.Errorf("the engine answers %d (%s)", a.StatusCode, said)
}

// clean makes an engine's words harmless for a terminal.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\ufffd' {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.TrimSpace(s)
}
