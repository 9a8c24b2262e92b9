package restorepoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/guest/object"
)

func metadata(t testing.TB) []byte {
	t.Helper()
	b, err := object.Encode(&object.Document{Version: object.Version, Source: object.SourceAgent, Taken: time.Unix(1e9, 0).UTC(),
		Objects: []object.Object{{Name: "users/anna", Kind: object.KindUser, Consistency: object.Consistency{Level: object.Filesystem, Reason: "<frozen> & well"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The document comes back byte for byte out of a manifest that was stored.
func TestMetadataSurvivesInTheManifest(t *testing.T) {
	b := metadata(t)
	stored, err := json.Marshal(Manifest{Version: ManifestVersion, ID: "p", Guest: &Guest{Metadata: b, MetadataDigest: object.Digest(b)}})
	if err != nil {
		t.Fatal(err)
	}
	var m Manifest
	if err := json.Unmarshal(stored, &m); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.Guest.Metadata, b) {
		t.Errorf("got  %s\nwant %s", m.Guest.Metadata, b)
	}
	d, err := m.Guest.Document()
	if err != nil || len(d.Objects) != 1 || d.Objects[0].Name != "users/anna" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestPointWithoutMetadata(t *testing.T) {
	for _, g := range []*Guest{nil, {}, {Source: "qemu-guest-agent", Metadata: json.RawMessage{}}} {
		if d, err := g.Document(); d != nil || err != nil {
			t.Errorf("%+v: %v, %v; want nothing", g, d, err)
		}
	}
}

func TestDamagedMetadataIsSaid(t *testing.T) {
	b := metadata(t)
	flipped := bytes.Replace(b, []byte("anna"), []byte("anne"), 1)
	newer := bytes.Replace(b, []byte(`"version":1`), []byte(`"version":9`), 1)
	for what, g := range map[string]struct {
		guest Guest
		want  string
	}{
		"a flipped byte":  {Guest{Metadata: flipped, MetadataDigest: object.Digest(b)}, "digest"},
		"a cut one":       {Guest{Metadata: b[:len(b)-1], MetadataDigest: object.Digest(b)}, "digest"},
		"no digest":       {Guest{Metadata: b}, "digest"},
		"a lost one":      {Guest{MetadataDigest: object.Digest(b)}, "not there"},
		"null":            {Guest{Metadata: json.RawMessage("null"), MetadataDigest: object.Digest(b)}, "digest"},
		"a lying agent's": {Guest{Metadata: json.RawMessage(`"x"`), MetadataDigest: object.Digest([]byte(`"x"`))}, "document"},
		"a newer version": {Guest{Metadata: newer, MetadataDigest: object.Digest(newer)}, "newer"},
	} {
		d, err := g.guest.Document()
		if d != nil || !errors.Is(err, ErrMetadata) || !strings.Contains(err.Error(), g.want) {
			t.Errorf("%s: %v, %v; want ErrMetadata with %q", what, d, err, g.want)
		}
	}
}

// Whatever is in a manifest, its document is whole, or there is an error.
func FuzzGuestDocument(f *testing.F) {
	b := metadata(f)
	f.Add([]byte(b), object.Digest(b), true)
	f.Add([]byte(b), object.Digest(b), false)
	f.Add([]byte(`{}`), "", true)
	f.Add([]byte(``), "x", false)
	f.Fuzz(func(t *testing.T, raw []byte, digest string, right bool) {
		if right {
			digest = object.Digest(raw)
		}
		g := Guest{Metadata: raw, MetadataDigest: digest}
		d, err := g.Document()
		switch {
		case err != nil:
			if d != nil || !errors.Is(err, ErrMetadata) {
				t.Fatalf("%v, %v", d, err)
			}
		case d == nil:
			if len(raw) > 0 || digest != "" {
				t.Fatalf("%q with the digest %q counts as none", raw, digest)
			}
		case object.Digest(raw) != digest:
			t.Fatal("a wrong digest was taken")
		default:
			if _, err := object.Encode(d); err != nil && len(raw) < 1<<20 {
				t.Fatal(err)
			}
			stored, err := json.Marshal(g)
			if err != nil {
				t.Fatal(err)
			}
			var back Guest
			if err := json.Unmarshal(stored, &back); err != nil || !bytes.Equal(back.Metadata, raw) {
				t.Fatalf("%v: %q became %q", err, raw, back.Metadata)
			}
		}
	})
}
