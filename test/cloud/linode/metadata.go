package linode

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// metadata is an instance's metadata service. See https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api
type metadata struct {
	front    *Front
	instance string
}

// session is a token of the metadata service.
type session struct {
	instance string
	until    time.Time
}

// Metadata returns an instance's metadata service.
func (f *Front) Metadata(instance string) http.Handler {
	return metadata{f, instance}
}

const mostExpiry = 86400 // seconds

// ServeHTTP implements http.Handler.
func (m metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	httpsim.ServeMetadata(m.front.cloud, m.instance, w, r, func() (int, string) {
		status, kind, body := m.answer(r)
		w.Header().Set("Content-Type", kind)
		return status, body
	})
}

func (m metadata) answer(r *http.Request) (status int, kind, body string) {
	switch r.Method + " " + r.URL.Path {
	case "PUT /v1/token":
		return m.giveToken(r)
	case "GET /v1/instance":
	default:
		return http.StatusNotFound, "text/plain", ""
	}
	m.front.mu.Lock()
	of := m.front.sessions[r.Header.Get("Metadata-Token")]
	m.front.mu.Unlock()
	if of.instance != m.instance || !time.Now().Before(of.until) {
		return http.StatusUnauthorized, "text/plain", ""
	}
	i, ok := m.front.cloud.Instance(m.instance)
	if !ok {
		return http.StatusNotFound, "text/plain", ""
	}
	if r.Header.Get("Accept") != "application/json" {
		return http.StatusOK, "text/plain", fmt.Sprintf("id: %s\nlabel: %s\nregion: %s\ntype: %s\n", i.ID, labelOf(i.ID), i.Zone, i.Type)
	}
	document, err := json.Marshal(map[string]any{
		"id": number(i.ID), "label": labelOf(i.ID), "region": i.Zone, "type": i.Type, "host_uuid": hostUUID, "tags": []string{},
		"specs": specsOf(i), "backups": map[string]any{"enabled": false, "status": nil},
		"image": map[string]any{"id": image, "label": "Debian 13"}, "account_euuid": "A1B2C3D4-E5F6-47A8-9B0C1D2E3F405162",
	})
	if err != nil {
		panic(err) // impossible: plain data
	}
	return http.StatusOK, "application/json", string(document)
}

func (m metadata) giveToken(r *http.Request) (status int, kind, body string) {
	seconds, err := strconv.Atoi(r.Header.Get("Metadata-Token-Expiry-Seconds"))
	if err != nil || seconds < 1 || seconds > mostExpiry {
		return http.StatusBadRequest, "text/plain", ""
	}
	m.front.mu.Lock()
	defer m.front.mu.Unlock()
	token := hex.EncodeToString(fmt.Appendf(nil, "%s %d token", m.instance, len(m.front.sessions)))
	m.front.sessions[token] = session{m.instance, time.Now().Add(time.Duration(seconds) * time.Second)}
	if r.Header.Get("Accept") != "application/json" {
		return http.StatusOK, "text/plain", token
	}
	document, _ := json.Marshal([]string{token})
	return http.StatusOK, "application/json", string(document)
}
