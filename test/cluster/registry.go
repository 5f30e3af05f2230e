package cluster

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// registryServer serves plugins and images to engines like a registry. See
// https://distribution.github.io/distribution/spec/api/
type registryServer struct {
	mu        sync.Mutex
	blobs     map[string][]byte // by digest
	manifests map[string][]byte // by name:tag or digest
}

const (
	manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	pluginType   = "application/vnd.docker.plugin.v1+json"
	imageType    = "application/vnd.docker.container.image.v1+json"
	layerType    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

func newRegistry() *registryServer {
	return &registryServer{blobs: map[string][]byte{}, manifests: map[string][]byte{}}
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Size      int    `json:"size"`
	Digest    string `json:"digest"`
}

// pushPlugin makes a built plugin available under a tag, which is also a file in its root file system, so that versions differ.
func (r *registryServer) pushPlugin(dir, tag string) error {
	layer, diff, err := pack(filepath.Join(dir, "rootfs"), tag)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{diff}}
	return r.push("blockvol:"+tag, pluginType, config, layer)
}

// pushImage makes an image of the files in a directory available.
func (r *registryServer) pushImage(dir, reference string, entrypoint ...string) error {
	_, tag, _ := strings.Cut(reference, ":")
	layer, diff, err := pack(dir, tag)
	if err != nil {
		return err
	}
	return r.push(reference, imageType, map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Entrypoint": entrypoint},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diff}},
	}, layer)
}

func (r *registryServer) push(reference, kind string, config any, layer []byte) error {
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": r.blob(kind, text),
		"layers": []descriptor{r.blob(layerType, layer)},
	})
	if err != nil {
		return err
	}
	r.manifests[reference] = manifest
	r.manifests[digest(manifest)] = manifest
	return nil
}

func (r *registryServer) blob(kind string, content []byte) descriptor {
	d := digest(content)
	r.blobs[d] = content
	return descriptor{kind, len(content), d}
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// pack returns a directory as an uncompressed archive in gzip format, and the archive's digest. An emulated processor receives
// bytes faster than it expands them. The archive has a file with the version.
func pack(dir, version string) (layer []byte, diff string, err error) {
	var compressed bytes.Buffer
	sum := sha256.New()
	zip, err := gzip.NewWriterLevel(&compressed, gzip.NoCompression)
	if err != nil {
		return nil, "", err
	}
	archive := tar.NewWriter(io.MultiWriter(zip, sum))
	if err := archive.AddFS(os.DirFS(dir)); err != nil {
		return nil, "", err
	}
	err = archive.WriteHeader(&tar.Header{Name: "version", Mode: 0o644, Size: int64(len(version))})
	if err == nil {
		_, err = io.WriteString(archive, version)
	}
	if err == nil {
		err = archive.Close()
	}
	if err == nil {
		err = zip.Close()
	}
	return compressed.Bytes(), "sha256:" + hex.EncodeToString(sum.Sum(nil)), err
}

// ServeHTTP implements http.Handler.
func (r *registryServer) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if request.URL.Path == "/v2/" {
		return
	}
	what, name := "", ""
	if parts := strings.Split(strings.TrimPrefix(request.URL.Path, "/v2/"), "/"); len(parts) == 3 {
		what, name = parts[1], parts[2]
		if what == "manifests" && !strings.HasPrefix(name, "sha256:") {
			name = parts[0] + ":" + name
		}
	}
	r.mu.Lock()
	content := map[string]map[string][]byte{"manifests": r.manifests, "blobs": r.blobs}[what][name]
	r.mu.Unlock()
	if content == nil {
		http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"there is no such thing here"}]}`, http.StatusNotFound)
		return
	}
	if what == "manifests" {
		w.Header().Set("Content-Type", manifestType)
	}
	w.Header().Set("Docker-Content-Digest", digest(content))
	http.ServeContent(w, request, "", time.Time{}, bytes.NewReader(content))
}
