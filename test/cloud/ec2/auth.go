package ec2

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// identity is the sender of a request: an instance's role, or the account, to which no policy applies.
type identity struct {
	instance string // "" for the account
	arn      string
}

const role = "blockvol-node"

func (f *Front) identityOf(instance string) identity {
	if instance == "" {
		return identity{"", "arn:aws:iam::" + f.cfg.Account + ":root"}
	}
	return identity{instance, "arn:aws:sts::" + f.cfg.Account + ":assumed-role/" + role + "/" + instance}
}

// A role's credentials are valid for hours. The metadata service returns the next ones some time before the old ones expire.
// Generations differ in the token only.
const (
	credentialLife = 6 * time.Hour
	renewedBefore  = 15 * time.Minute
	renewal        = credentialLife - renewedBefore
)

func generationAt(t time.Time) int64 { return t.Unix() / int64(renewal/time.Second) }

func expiry(generation int64) time.Time {
	return time.Unix(generation*int64(renewal/time.Second), 0).Add(credentialLife)
}

// Credentials returns the credentials that the metadata service returns now for an instance's role. For "" they are the
// account's: no policy applies, and they have no token and never expire.
func (f *Front) Credentials(instance string) (keyID, secret, token string) {
	id := strings.ToUpper(hex.EncodeToString(f.derive("key", instance)[:8]))
	secret = base64.StdEncoding.EncodeToString(f.derive("secret", instance)[:30])
	if instance == "" {
		keyID = "AKIA" + id
	} else {
		keyID = "ASIA" + id
		token = f.sessionToken(instance, generationAt(time.Now()))
	}
	f.mu.Lock()
	f.keys[keyID] = instance
	f.mu.Unlock()
	return keyID, secret, token
}

func (f *Front) derive(of, instance string) []byte {
	sum := sha256.Sum256([]byte(strings.Join([]string{of, f.cfg.Account, f.cfg.Region, instance}, " ")))
	return sum[:]
}

func (f *Front) sessionToken(instance string, generation int64) string {
	of := strconv.FormatInt(generation, 10)
	return base64.StdEncoding.EncodeToString(slices.Concat(f.derive("token", instance), f.derive("more", instance), f.derive(of, instance)))
}

// checkToken refuses a session token that is not the instance's or has expired.
func (f *Front) checkToken(instance, token string) error {
	if instance != "" {
		const week = int64(7 * 24 * time.Hour / renewal)
		now := time.Now()
		for g := generationAt(now); g > generationAt(now)-week; g-- {
			switch {
			case token != f.sessionToken(instance, g):
			case !now.Before(expiry(g)):
				return refuse("RequestExpired", "Request has expired.")
			default:
				return nil
			}
		}
	} else if token == "" {
		return nil
	}
	return refuse("AuthFailure", "AWS was not able to validate the provided access credentials")
}

// holder returns the instance of a key.
func (f *Front) holder(keyID string) (instance string, ok bool) {
	f.mu.Lock()
	instance, ok = f.keys[keyID]
	f.mu.Unlock()
	if ok {
		return instance, true
	}
	// Keys are the same in each run, so a client may have one from an earlier run.
	for _, i := range f.cloud.Instances() {
		if own, _, _ := f.Credentials(i.ID); own == keyID {
			return i.ID, true
		}
	}
	own, _, _ := f.Credentials("")
	return "", own == keyID
}

// authorization is the Authorization header of signature version 4.
type authorization struct {
	keyID, date, region, service string
	signed                       []string
	signature                    string
}

func parseAuthorization(header string) (a authorization, ok bool) {
	rest, ok := strings.CutPrefix(header, "AWS4-HMAC-SHA256 ")
	if !ok {
		return a, false
	}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			scope := strings.Split(value, "/")
			if len(scope) != 5 || scope[4] != "aws4_request" {
				return a, false
			}
			a.keyID, a.date, a.region, a.service = scope[0], scope[1], scope[2], scope[3]
		case "SignedHeaders":
			a.signed = strings.Split(value, ";")
		case "Signature":
			a.signature = value
		}
	}
	return a, a.keyID != "" && a.signature != "" && slices.Contains(a.signed, "host") && slices.Contains(a.signed, "x-amz-date")
}

// claims returns the identity that a request claims.
func (f *Front) claims(r *http.Request) identity {
	a, _ := parseAuthorization(r.Header.Get("Authorization"))
	instance, _ := f.holder(a.keyID)
	return f.identityOf(instance)
}

const (
	dateHeader  = "X-Amz-Date"
	tokenHeader = "X-Amz-Security-Token"
	timeFormat  = "20060102T150405Z"
	// skew is the allowed difference of a request's clock. See
	// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html
	skew = 5 * time.Minute
)

// authenticate computes the signature of a request and compares it.
func (f *Front) authenticate(r *http.Request, body []byte) (identity, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return identity{}, refuse("MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	a, ok := parseAuthorization(header)
	if !ok {
		return identity{}, refuse("IncompleteSignature", "The request signature does not conform to AWS standards.")
	}
	instance, known := f.holder(a.keyID)
	keyID, secret, _ := f.Credentials(instance)
	token := r.Header.Get(tokenHeader)
	if !known || keyID != a.keyID {
		return identity{}, refuse("AuthFailure", "AWS was not able to validate the provided access credentials")
	}
	if err := f.checkToken(instance, token); err != nil {
		return identity{}, err
	}
	signed, err := time.Parse(timeFormat, r.Header.Get(dateHeader))
	if err != nil {
		return identity{}, refuse("IncompleteSignature", "The request signature does not conform to AWS standards.")
	}
	if off := f.cfg.Now().Sub(signed); off.Abs() > skew {
		return identity{}, refuse("RequestExpired", "Request has expired.")
	}
	if a.region != f.cfg.Region || a.service != "ec2" || a.date != signed.Format("20060102") {
		return identity{}, refuse("SignatureDoesNotMatch", "Credential should be scoped to a valid region, to the service ec2 and to the day of the request.")
	}
	wanted, err := sign(r, body, a, aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret, SessionToken: token}, signed)
	if err != nil || !hmac.Equal([]byte(wanted), []byte(a.signature)) {
		return identity{}, refuse("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return f.identityOf(instance), nil
}

// sign returns the right signature of a request.
func sign(r *http.Request, body []byte, a authorization, keys aws.Credentials, at time.Time) (string, error) {
	again := &http.Request{Method: r.Method, Host: r.Host, Header: http.Header{}, URL: &url.URL{
		Scheme: "https", Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery,
	}}
	if again.Host == "" {
		again.Host, again.URL.Host = r.URL.Host, r.URL.Host
	}
	for _, name := range a.signed {
		switch name {
		case "host":
		case "content-length":
			again.ContentLength = int64(len(body))
		default:
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(context.Background(), keys, again, hex.EncodeToString(sum[:]), a.service, a.region, at); err != nil {
		return "", err
	}
	made, _ := parseAuthorization(again.Header.Get("Authorization"))
	return made.signature, nil
}
