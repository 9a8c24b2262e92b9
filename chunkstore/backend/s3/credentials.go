package s3

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// ErrCredentials: there are none, or the engine refuses them.
var ErrCredentials = errors.New("no usable credentials")

const noCredentials = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials (AWS_PROFILE names the profile)"

// findCredentials looks where S3 programs do, and takes the first that is
// there: the environment (AWS_…, then MINIO_…), the credentials file,
// the machine's role. What is there by half, or a profile that is not there, is an
// error and not passed over: nobody means to be somebody else.
func findCredentials(s Spec, getenv func(string) string) (*credentials.Credentials, error) {
	for _, e := range []struct{ id, secret, token string }{
		{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"},
		{"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", ""},
		{"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", ""},
	} {
		id, secret, token := getenv(e.id), getenv(e.secret), ""
		if id != "" && secret != "" {
			if e.token != "" {
				token = getenv(e.token)
			}
			return credentials.NewStaticV4(id, secret, token), nil
		}
		if id != "" || secret != "" {
			return nil, fmt.Errorf("%w: of %s and %s only one is set", ErrCredentials, e.id, e.secret)
		}
	}
	file, named := credentialsFile(getenv)
	if _, err := os.Stat(file); err == nil {
		return fromFile(file, getenv("AWS_PROFILE"))
	} else if named || !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: credentials file: %w", ErrCredentials, err)
	}
	if hasRole(s, getenv) {
		return fromRole(getenv("AWS_REGION"))
	}
	return nil, fmt.Errorf("%w for %s: %s", ErrCredentials, s.Host, noCredentials)
}

// fromFile reads a profile. What a parser says of a file may quote the secret:
// it is not passed on.
func fromFile(file, profile string) (*credentials.Credentials, error) {
	c := credentials.New(&credentials.FileAWSCredentials{Filename: file, Profile: profile})
	if profile == "" {
		profile = "default"
	}
	v, err := c.GetWithContext(nil)
	if err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return nil, fmt.Errorf("%w: %s has no whole profile [%s]: it needs aws_access_key_id and aws_secret_access_key", ErrCredentials, file, profile)
	}
	return c, nil
}

// fromRole asks once, so that a role's lack is said here and not by an engine
// as an anonymous visitor's.
func fromRole(region string) (*credentials.Credentials, error) {
	c := credentials.New(&credentials.IAM{Region: region})
	v, err := c.GetWithContext(nil)
	if err != nil || v.AccessKeyID == "" {
		return nil, fmt.Errorf("%w: the machine has no role that answers: %s", ErrCredentials, noCredentials)
	}
	return c, nil
}

// credentialsFile gives the file, and whether somebody named it.
func credentialsFile(getenv func(string) string) (path string, named bool) {
	if f := getenv("AWS_SHARED_CREDENTIALS_FILE"); f != "" {
		return f, true
	}
	return filepath.Join(getenv("HOME"), ".aws", "credentials"), false
}

// hasRole says whether the machine may have a role: a virtual machine or
// container of Amazon's. Elsewhere nobody answers at the address that is asked.
func hasRole(s Spec, getenv func(string) string) bool {
	if strings.EqualFold(getenv("AWS_EC2_METADATA_DISABLED"), "true") {
		return false
	}
	for _, v := range []string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"} {
		if getenv(v) != "" {
			return true
		}
	}
	host, _, _ := strings.Cut(s.Host, ":")
	return strings.HasSuffix(host, ".amazonaws.com") || strings.HasSuffix(host, ".amazonaws.com.cn")
}
