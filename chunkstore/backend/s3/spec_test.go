package s3

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Spec{
		"s3:https://s3.example.org/backup":            {Secure: true, Host: "s3.example.org", Bucket: "backup"},
		"s3:s3.example.org/backup":                    {Secure: true, Host: "s3.example.org", Bucket: "backup"},
		"s3:http://127.0.0.1:9000/backup/site-1/a_B/": {Host: "127.0.0.1:9000", Bucket: "backup", Prefix: "site-1/a_B"},
		"s3:https://[::1]:9000/my.bucket":             {Secure: true, Host: "[::1]:9000", Bucket: "my.bucket"},
		"s3:S3.Example.ORG/backup/":                   {Secure: true, Host: "s3.example.org", Bucket: "backup"},
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "/backup/repo", "s3:", "s3:https://", "s3:https:///b", "s3:host", "s3:host/", "s3:host//x", "s3:ftp://host/bucket",
		"s3:https://key:secret-word@host/bucket", "s3:key@host/bucket", "s3:host:99999/bucket", "s3:host:/bucket", "s3:host:0/bucket", "s3:host/Bucket",
		"s3:host/b", "s3:host/bucket/../x", "s3:host/bucket/a//b", "s3:host/bucket/.a", "s3:host/bucket/ü", "s3:host/bucket?x=1", "s3:host/bucket#x",
		"s3:host/bucket/%2e%2e/x", "s3:ho st/bucket", "s3:host/bucket/a b", "s3:host/bucket/" + strings.Repeat("x", maxPrefix+1), "s3:host/bucket\n", "s3:host/bucket?",
	} {
		if got, err := Parse(in); err == nil {
			t.Errorf("%q was taken for %+v", in, got)
		} else if strings.Contains(err.Error(), "secret-word") {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"s3:https://s3.example.org:9000/backup/site-1", "s3:host/bucket", "s3:http://[::1]/bucket/x/", "s3:https://a@b/ccc"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if err != nil {
			return
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Fatalf("%q is %+v, and its name %q is %+v, %v", in, s, s.String(), again, err)
		}
		if strings.Contains(s.Prefix, "..") && strings.Contains("/"+s.Prefix+"/", "/../") {
			t.Fatalf("%q leaves the bucket", in)
		}
	})
}
