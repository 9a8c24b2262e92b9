package s3

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// scheme begins the name of a place in object storage.
const scheme = "s3:"

// maxPrefix bounds a prefix in bytes: a key may have 1024, an object name of
// Cairn has 512.
const maxPrefix = 256

// Spec names a bucket, or a prefix in one.
type Spec struct {
	Secure bool   // https
	Host   string // with the port, if it is not the usual one
	Bucket string
	Prefix string // "" or without slashes at its ends
}

// Is says whether a place's name means object storage and not a folder.
func Is(place string) bool { return strings.HasPrefix(place, scheme) }

// String gives what Parse reads.
func (s Spec) String() string {
	u := "https://"
	if !s.Secure {
		u = "http://"
	}
	out := scheme + u + s.Host + "/" + s.Bucket
	if s.Prefix != "" {
		out += "/" + s.Prefix
	}
	return out
}

// Parse reads s3:http(s)://HOST[:PORT]/BUCKET[/PREFIX]; s3:HOST/… is https.
func Parse(place string) (Spec, error) {
	s, err := parse(place)
	if err != nil {
		return Spec{}, fmt.Errorf("a bucket is named s3:https://HOST[:PORT]/BUCKET[/PREFIX]: %w", err)
	}
	return s, nil
}

func parse(place string) (Spec, error) {
	rest, ok := strings.CutPrefix(place, scheme)
	if !ok {
		return Spec{}, errors.New("s3: is missing at its beginning")
	}
	if strings.Contains(rest, "@") { // before anything is printed of it
		return Spec{}, errors.New("credentials do not belong there, others on this host can read them: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws/credentials")
	}
	if !strings.Contains(rest, "://") {
		rest = "https://" + rest
	}
	u, err := url.Parse(rest)
	if err != nil {
		return Spec{}, errors.New("that is not a URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return Spec{}, fmt.Errorf("%q is neither http nor https", u.Scheme)
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.RawPath != "" || u.Opaque != "" || strings.Contains(rest, "#") {
		return Spec{}, errors.New("?, # and % have no place in it")
	}
	s := Spec{Secure: u.Scheme == "https"}
	if s.Host, err = parseHost(u); err != nil {
		return Spec{}, err
	}
	s.Bucket, s.Prefix, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if s.Bucket == "" {
		return Spec{}, errors.New("the bucket is missing")
	}
	if err := s3utils.CheckValidBucketNameStrict(s.Bucket); err != nil {
		return Spec{}, fmt.Errorf("bucket %q: %w", s.Bucket, err)
	}
	s.Prefix = strings.TrimSuffix(s.Prefix, "/")
	return s, checkPrefix(s.Prefix)
}

func parseHost(u *url.URL) (string, error) {
	name, port := u.Hostname(), u.Port()
	ok := name != "" && !strings.HasSuffix(u.Host, ":")
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == ':' || c == '_')
	}
	if strings.Contains(name, ":") {
		ok = ok && net.ParseIP(name) != nil
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		ok = ok && err == nil && n > 0
	}
	if !ok {
		return "", fmt.Errorf("%q is no host", u.Host)
	}
	return strings.ToLower(u.Host), nil
}

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if len(prefix) > maxPrefix {
		return fmt.Errorf("a prefix of %d bytes is longer than %d", len(prefix), maxPrefix)
	}
	for _, part := range strings.Split(prefix, "/") {
		if part == "" || part[0] == '.' {
			return fmt.Errorf("prefix %q: its parts must not be empty or begin with a dot", prefix)
		}
	}
	for _, c := range []byte(prefix) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._/", c) >= 0) {
			return fmt.Errorf("prefix %q: only letters, digits, '-', '.', '_' and '/'", prefix)
		}
	}
	return nil
}
