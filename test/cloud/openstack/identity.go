package openstack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/test/cloud/rest"
)

const authPath = "/identity/v3/auth/tokens"

type token struct {
	instance string
	until    time.Time // by the cloud's clock
}

// claimed is the context key of the body of a token request.
type claimed struct{}

// Credentials returns an instance's application credential. The same ID and secret are also the name and password of a user in
// domain Default and project demo.
func (f *Front) Credentials(instance string) (id, secret string) {
	return strings.ReplaceAll(uuid("credential "+instance), "-", ""), "secret-" + strings.ReplaceAll(uuid("secret "+instance), "-", "")
}

// UserOf returns the name of an instance's user.
func UserOf(instance string) string { return "node-" + instance }

// Revoke revokes an instance's credentials and tokens.
func (f *Front) Revoke(instance string) {
	f.mu.Lock()
	f.revoked[instance] = true
	f.mu.Unlock()
	f.Expire(instance)
}

// Restore restores the credentials.
func (f *Front) Restore(instance string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.revoked, instance)
}

// Expire expires an instance's tokens. It can get new ones.
func (f *Front) Expire(instance string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, t := range f.tokens {
		if t.instance == instance {
			delete(f.tokens, id)
		}
	}
}

// Withdraw removes a service, such as "volumev3", from the region's catalogue.
func (f *Front) Withdraw(service string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.missing[service] = true
}

// catalog returns the catalogue, which is without the services removed by Withdraw.
func (f *Front) catalog(services ...map[string]any) []map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(services, func(s map[string]any) bool { return f.missing[s["type"].(string)] })
}

// Token issues a token to an instance.
func (f *Front) Token(instance string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.issued++
	id := "gAAAAAB" + strings.ReplaceAll(uuid(fmt.Sprintf("token %s %d", instance, f.issued)), "-", "")
	f.tokens[id] = token{instance, f.cfg.Now().Add(f.cfg.TokenLife)}
	return id
}

// caller returns the instance of a request's token or credentials.
func (f *Front) caller(r *http.Request) (string, error) {
	if body, is := r.Context().Value(claimed{}).([]byte); is {
		instance, _ := f.claims(body)
		return instance, nil // issue checks the credentials
	}
	if !strings.HasPrefix(r.URL.Path, "/volume/") && !strings.HasPrefix(r.URL.Path, "/compute/") {
		return "", nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t, known := f.tokens[r.Header.Get("X-Auth-Token")]
	if !known || !f.cfg.Now().Before(t.until) {
		return t.instance, unauthorized()
	}
	return t.instance, nil
}

func unauthorized() *rest.Refusal {
	refusal := &rest.Refusal{Answer: rest.Answer{Status: http.StatusUnauthorized, Body: map[string]any{"error": map[string]any{
		"code": http.StatusUnauthorized, "title": "Unauthorized", "message": "The request you have made requires authentication.",
	}}}}
	refusal.Header = http.Header{"Www-Authenticate": {`Keystone uri="/identity"`}}
	return refusal
}

type named struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Domain *named `json:"domain"`
}

type auth struct {
	Auth struct {
		Identity struct {
			Methods  []string `json:"methods"`
			Password *struct {
				User struct {
					named
					Password string `json:"password"`
				} `json:"user"`
			} `json:"password"`
			Credential *struct {
				ID     string `json:"id"`
				Name   string `json:"name"`
				Secret string `json:"secret"`
				User   *named `json:"user"`
			} `json:"application_credential"`
		} `json:"identity"`
		Scope *struct {
			Project *named `json:"project"`
		} `json:"scope"`
	} `json:"auth"`
}

// claims returns the instance of a token request and whether the credentials are right.
func (f *Front) claims(body []byte) (instance string, right bool) {
	var a auth
	if json.Unmarshal(body, &a) != nil {
		return "", false
	}
	identity := a.Auth.Identity
	for _, i := range f.cloud.Instances() {
		id, secret := f.Credentials(i.ID)
		f.mu.Lock()
		gone := f.revoked[i.ID]
		f.mu.Unlock()
		switch {
		case identity.Credential != nil && (identity.Credential.ID == id || identity.Credential.Name == id && isUser(identity.Credential.User, i.ID)):
			return i.ID, !gone && identity.Credential.Secret == secret && a.Auth.Scope == nil
		case identity.Password != nil && isUser(&identity.Password.User.named, i.ID):
			return i.ID, !gone && identity.Password.User.Password == secret && isProject(a)
		}
	}
	return "", false
}

func isUser(user *named, instance string) bool {
	return user != nil && (user.ID == User+instance || user.Name == UserOf(instance) && isDefault(user.Domain))
}

func isDefault(domain *named) bool {
	return domain != nil && (domain.ID == "default" || domain.Name == "Default")
}

func isProject(a auth) bool {
	if a.Auth.Scope == nil || a.Auth.Scope.Project == nil {
		return false
	}
	project := a.Auth.Scope.Project
	return project.ID == Project || project.Name == "demo" && isDefault(project.Domain)
}

// issue answers a token request.
func (f *Front) issue(r *rest.Request) (rest.Answer, error) {
	instance, right := f.claims(r.Body)
	if !right {
		return rest.Answer{}, unauthorized()
	}
	id := f.Token(instance)
	const zulu = "2006-01-02T15:04:05.000000Z"
	now := f.cfg.Now().UTC()
	domain := map[string]any{"id": "default", "name": "Default"}
	base := "http://" + r.HTTP.Host
	service := func(kind, name, path string) map[string]any {
		var endpoints []map[string]any
		for _, seen := range []string{"public", "internal", "admin"} {
			endpoints = append(endpoints, map[string]any{
				"id": strings.ReplaceAll(uuid(kind+seen), "-", ""), "interface": seen, "region": f.cfg.Region, "region_id": f.cfg.Region, "url": base + path,
			})
		}
		return map[string]any{"id": strings.ReplaceAll(uuid(kind), "-", ""), "type": kind, "name": name, "endpoints": endpoints}
	}
	return rest.Answer{
		Status: http.StatusCreated, Header: http.Header{"X-Subject-Token": {id}, "Vary": {"X-Auth-Token"}},
		Body: map[string]any{"token": map[string]any{
			"methods": []string{"password"}, "audit_ids": []string{"3T2dc1CGQxyJsHdDu1xkcw"}, "is_domain": false,
			"expires_at": now.Add(f.cfg.TokenLife).Format(zulu), "issued_at": now.Format(zulu),
			"user":    map[string]any{"id": User, "name": UserOf(instance), "domain": domain, "password_expires_at": nil},
			"project": map[string]any{"id": Project, "name": "demo", "domain": domain},
			"roles":   []map[string]any{{"id": "9fe2ff9ee4384b1894a90878d3e92bab", "name": "member"}},
			"catalog": f.catalog(
				service("identity", "keystone", "/identity"),
				service("compute", "nova", "/compute/v2.1"),
				service("volumev3", "cinderv3", "/volume/v3/"+Project),
				service("image", "glance", "/image"), // clients only need its entry
			),
		}},
	}, nil
}
