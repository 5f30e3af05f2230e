package ec2

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// MetadataOptions configures an instance's metadata service.
type MetadataOptions struct {
	V1     bool // requests without a token are allowed
	Off    bool // the service is disabled
	NoRole bool // the instance has no role and so no credentials
}

// metadata is the metadata service of an instance. See
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
type metadata struct {
	front    *Front
	instance string
	options  MetadataOptions

	mu     sync.Mutex
	tokens map[string]time.Time // expiry of each token
}

// Metadata returns the metadata service of an instance.
func (f *Front) Metadata(instance string, options MetadataOptions) http.Handler {
	return &metadata{front: f, instance: instance, options: options, tokens: map[string]time.Time{}}
}

const (
	ttlHeader           = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	metadataTokenHeader = "X-Aws-Ec2-Metadata-Token"
	maxTTL              = 21600 // seconds
	tokenPath           = "/latest/api/token"
)

// ServeHTTP implements http.Handler.
func (m *metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "EC2ws")
	w.Header().Set("Date", m.front.cfg.Now().UTC().Format(http.TimeFormat))
	httpsim.ServeMetadata(m.front.cloud, m.instance, w, r, func() (int, string) { return m.answer(w, r) })
}

func (m *metadata) answer(w http.ResponseWriter, r *http.Request) (status int, body string) {
	if m.options.Off {
		return http.StatusForbidden, ""
	}
	if r.URL.Path == tokenPath {
		return m.giveToken(w, r)
	}
	if r.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, ""
	}
	if token := r.Header.Get(metadataTokenHeader); token != "" || !m.options.V1 {
		if !m.good(token) {
			return http.StatusUnauthorized, ""
		}
	}
	i, ok := m.front.cloud.Instance(m.instance)
	if !ok {
		return http.StatusNotFound, ""
	}
	body, ok = m.value(i, r.URL.Path)
	if !ok {
		return http.StatusNotFound, ""
	}
	return http.StatusOK, body
}

func (m *metadata) giveToken(w http.ResponseWriter, r *http.Request) (status int, body string) {
	if r.Method != http.MethodPut {
		return http.StatusMethodNotAllowed, ""
	}
	if r.Header.Get("X-Forwarded-For") != "" {
		return http.StatusForbidden, ""
	}
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	if err != nil || ttl < 1 || ttl > maxTTL {
		return http.StatusBadRequest, ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	token := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s %d is a token for metadata", m.instance, len(m.tokens)))
	m.tokens[token] = time.Now().Add(time.Duration(ttl) * time.Second)
	w.Header().Set(ttlHeader, strconv.Itoa(ttl))
	return http.StatusOK, token
}

func (m *metadata) good(token string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, known := m.tokens[token]
	return known && time.Now().Before(until)
}

// value returns the value at a path.
func (m *metadata) value(i cloud.Instance, path string) (string, bool) {
	path, ok := strings.CutPrefix(path, "/latest/")
	if !ok {
		return "", false
	}
	switch path {
	case "dynamic/instance-identity/document":
		return m.document(i), true
	case "meta-data/ami-id":
		return imageID, true
	case "meta-data/instance-id":
		return i.ID, true
	case "meta-data/instance-type":
		return i.Type, true
	case "meta-data/local-ipv4":
		return i.Address, true
	case "meta-data/placement/availability-zone":
		return i.Zone, true
	case "meta-data/placement/region":
		return m.front.cfg.Region, true
	case "meta-data/network/interfaces/macs", "meta-data/network/interfaces/macs/":
		var macs strings.Builder
		for n := range i.Interfaces {
			fmt.Fprintf(&macs, "02:b1:0c:00:00:%02x/\n", n)
		}
		return strings.TrimSuffix(macs.String(), "\n"), true
	}
	if m.options.NoRole {
		return "", false
	}
	switch path {
	case "meta-data/iam/security-credentials", "meta-data/iam/security-credentials/":
		return role, true
	case "meta-data/iam/security-credentials/" + role:
		return m.credentials(), true
	}
	return "", false
}

func (m *metadata) document(i cloud.Instance) string {
	return indented(map[string]any{
		"accountId": m.front.cfg.Account, "architecture": typeOf(i.Type).arch, "availabilityZone": i.Zone,
		"billingProducts": nil, "devpayProductCodes": nil, "marketplaceProductCodes": nil,
		"imageId": imageID, "instanceId": i.ID, "instanceType": i.Type, "kernelId": nil,
		"pendingTime": i.LaunchedAt.UTC().Format("2006-01-02T15:04:05Z"), "privateIp": i.Address, "ramdiskId": nil,
		"region": m.front.cfg.Region, "version": "2017-09-30",
	})
}

func (m *metadata) credentials() string {
	keyID, secret, token := m.front.Credentials(m.instance)
	now := m.front.cfg.Now().UTC()
	left := time.Until(expiry(generationAt(time.Now()))) // by this machine's clock
	return indented(map[string]any{
		"Code": "Success", "LastUpdated": now.Format(time.RFC3339), "Type": "AWS-HMAC",
		"AccessKeyId": keyID, "SecretAccessKey": secret, "Token": token, "Expiration": now.Add(left).Format(time.RFC3339),
	})
}

func indented(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // impossible: it has only strings
	}
	return string(b)
}
