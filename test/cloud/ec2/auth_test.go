package ec2_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

func TestRequestsWithoutValidSignatureAreRefused(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	key, secret, token := w.front.Credentials(w.instance.ID)
	otherKey, otherSecret, otherToken := w.front.Credentials("i-0123456789abcdef0")
	require.NotEqual(t, key, otherKey)
	rootKey, rootSecret, none := w.front.Credentials("")
	assert.Empty(t, none)
	for name, test := range map[string]struct {
		keys   aws.Credentials
		change func(*sdk.Options)
		code   string
	}{
		"the instance":             {aws.Credentials{AccessKeyID: key, SecretAccessKey: secret, SessionToken: token}, nil, ""},
		"the account":              {aws.Credentials{AccessKeyID: rootKey, SecretAccessKey: rootSecret}, nil, ""},
		"an unknown key":           {aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: secret}, nil, "AuthFailure"},
		"without the token":        {aws.Credentials{AccessKeyID: key, SecretAccessKey: secret}, nil, "AuthFailure"},
		"with another's token":     {aws.Credentials{AccessKeyID: key, SecretAccessKey: secret, SessionToken: otherToken}, nil, "AuthFailure"},
		"with another's secret":    {aws.Credentials{AccessKeyID: key, SecretAccessKey: otherSecret, SessionToken: token}, nil, "SignatureDoesNotMatch"},
		"scoped to another region": {aws.Credentials{AccessKeyID: key, SecretAccessKey: secret, SessionToken: token}, func(o *sdk.Options) { o.Region = "eu-west-1" }, "SignatureDoesNotMatch"},
		"anonymously":              {aws.Credentials{}, func(o *sdk.Options) { o.Credentials = aws.AnonymousCredentials{} }, "MissingAuthenticationToken"},
	} {
		api := w.clientOf("", func(o *sdk.Options) {
			o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return test.keys, nil })
			if test.change != nil {
				test.change(o)
			}
		})
		_, err := api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{})
		assert.Equal(t, test.code, code(t, err), name)
	}
}

func TestSignatureExpiresAfterMinutes(t *testing.T) {
	for off, want := range map[time.Duration]string{
		0: "", 4 * time.Minute: "", -4 * time.Minute: "", 6 * time.Minute: "RequestExpired", -6 * time.Minute: "RequestExpired",
	} {
		w := newWorld(t, cloud.Config{}, ec2.Config{Now: func() time.Time { return time.Now().Add(off) }})
		_, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{})
		assert.Equal(t, want, code(t, err), "%s off", off)
	}
}

func TestRoleCredentialsExpireAfterTheNextAreOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{}, ec2.Config{})
		credentials := func() (keys aws.Credentials) {
			keys.AccessKeyID, keys.SecretAccessKey, keys.SessionToken = w.front.Credentials(w.instance.ID)
			return keys
		}
		keys := credentials()
		ask := func() string {
			api := w.clientOf("", func(o *sdk.Options) {
				o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return keys, nil })
			})
			_, err := api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{})
			return code(t, err)
		}
		for credentials() == keys {
			time.Sleep(time.Minute)
		}
		assert.Empty(t, ask(), "the old ones are still valid")
		time.Sleep(15 * time.Minute)
		assert.Equal(t, "RequestExpired", ask())
		keys = credentials()
		assert.Empty(t, ask())
		w.cloud.Close()
	})
}

// post sends a signed request, which change may modify after signing.
func post(t *testing.T, w *world, url, body string, change func(*http.Request)) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	key, secret, token := w.front.Credentials(w.instance.ID)
	sum := sha256.Sum256([]byte(body))
	keys := aws.Credentials{AccessKeyID: key, SecretAccessKey: secret, SessionToken: token}
	require.NoError(t, v4.NewSigner().SignHTTP(t.Context(), keys, r, hex.EncodeToString(sum[:]), "ec2", region, time.Now()))
	if change != nil {
		change(r)
	}
	client := &http.Client{}
	if strings.Contains(url, "amazonaws") {
		client.Transport = w.front.Transport(w.instance.ID)
	}
	response, err := client.Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { response.Body.Close() }) //nolint:errcheck // it has been read
	got, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(got)
}

func TestModifiedRequestIsRefused(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	server := httptest.NewServer(w.front)
	t.Cleanup(server.Close)
	const body = "Action=DescribeVolumes&Version=2016-11-15"
	for _, url := range []string{server.URL, "https://ec2.eu-test-1.amazonaws.com/"} {
		status, answer := post(t, w, url, body, nil)
		assert.Equal(t, http.StatusOK, status, answer)
		for name, change := range map[string]func(*http.Request){
			"body": func(r *http.Request) {
				forged := "Action=DescribeVolumes&Version=2016-11-15&VolumeId.1=vol-0123456789abcdef0"
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader(forged)), int64(len(forged))
			},
			"path":   func(r *http.Request) { r.URL.Path = "/other" },
			"header": func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") },
			"date": func(r *http.Request) {
				r.Header.Set("X-Amz-Date", time.Now().Add(time.Minute).UTC().Format("20060102T150405Z"))
			},
			"signature": func(r *http.Request) {
				h := r.Header.Get("Authorization")
				r.Header.Set("Authorization", h[:len(h)-8]+"00000000")
			},
		} {
			status, answer := post(t, w, url, body, change)
			assert.Equal(t, http.StatusForbidden, status, name)
			assert.Contains(t, answer, "<Code>SignatureDoesNotMatch</Code>", name)
		}
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	const url = "https://ec2.eu-test-1.amazonaws.com/"
	for body, want := range map[string]string{
		"Action=RunInstances&Version=2016-11-15":                                           "InvalidAction",
		"Version=2016-11-15":                                                               "MissingAction",
		"Action=DescribeVolumes&Version=2012-01-01":                                        "InvalidParameterValue",
		"Action=DescribeVolumes&Version=2016-11-15&Volume.1=vol-1":                         "UnknownParameter",
		"Action=DescribeVolumes&Version=2016-11-15&VolumeId=vol-0123456789abcdef0":         "UnknownParameter",
		"Action=DescribeVolumes&Version=2016-11-15&MaxResults=many":                        "InvalidParameterValue",
		"Action=DescribeVolumes&Version=2016-11-15&MaxResults=5&MaxResults=6":              "InvalidParameterValue",
		"Action=DescribeVolumes&Version=2016-11-15&Filter.1.Name=status":                   "InvalidParameterValue",
		"Action=DescribeVolumes&Version=2016-11-15&Filter.1.Value.1=available":             "InvalidParameterValue",
		"Action=DeleteVolume&Version=2016-11-15":                                           "MissingParameter",
		"Action=DeleteVolume&Version=2016-11-15&VolumeId=vol-0123456789abcdef0&DryRun=yes": "InvalidParameterValue",
		"Action=CreateTags&Version=2016-11-15&Tag.1.Key=a&Tag.1.Value=b":                   "MissingParameter",
		"Action=CreateTags&Version=2016-11-15&ResourceId.1=vol-0123456789abcdef0":          "MissingParameter",
		"Action=DescribeVolumes&Version=2016-11-15&Filter.1.Name=status&Filter.1.Value.%":  "MalformedQueryString",
	} {
		status, answer := post(t, w, url, body, nil)
		assert.Equal(t, http.StatusBadRequest, status, body)
		assert.Contains(t, answer, "<Code>"+want+"</Code>", body)
		assert.Regexp(t, `^<\?xml version="1.0" encoding="UTF-8"\?>\n<Response><Errors><Error><Code>\w+</Code><Message>.+</Message></Error></Errors><RequestID>[0-9a-f-]{36}</RequestID></Response>$`, answer)
	}
	status, answer := post(t, w, url, "Action=DescribeVolumes&Version=2016-11-15&Filter.2.Name=size&Filter.2.Value.7=8", nil)
	assert.Equal(t, http.StatusOK, status, "list numbers can begin anywhere")
	assert.Regexp(t, `^<\?xml version="1.0" encoding="UTF-8"\?>\n<DescribeVolumesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>[0-9a-f-]{36}</requestId><volumeSet><item><volumeId>vol-`, answer)
}

// allow returns a policy of one statement.
func allow(actions, resources, condition string) []byte {
	if condition != "" {
		condition = `, "Condition": ` + condition
	}
	return fmt.Appendf(nil, `{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": %s, "Resource": %s%s}}`, actions, resources, condition)
}

const arn = `"arn:aws:ec2:eu-test-1:123456789012:`

func TestPolicyIsEvaluated(t *testing.T) {
	const own = "cluster"
	create := func(pairs ...string) func(*world, *sdk.Client) error {
		return func(w *world, api *sdk.Client) error {
			in := &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: aws.Int32(1)}
			if len(pairs) > 0 {
				in.TagSpecifications = tagged("volume", pairs...)
			}
			_, err := api.CreateVolume(w.t.Context(), in)
			return err
		}
	}
	find := func(w *world, value string) string {
		for _, v := range w.cloud.Volumes() {
			if v.Tags[own] == value {
				return v.ID
			}
		}
		return ""
	}
	remove := func(value string) func(*world, *sdk.Client) error {
		return func(w *world, api *sdk.Client) error {
			_, err := api.DeleteVolume(w.t.Context(), &sdk.DeleteVolumeInput{VolumeId: aws.String(find(w, value))})
			return err
		}
	}
	attach := func(w *world, api *sdk.Client) error {
		_, err := api.AttachVolume(w.t.Context(), &sdk.AttachVolumeInput{VolumeId: aws.String(find(w, "blue")), InstanceId: &w.instance.ID, Device: aws.String("/dev/xvdba")})
		return err
	}
	tag := func(value string, pairs ...string) func(*world, *sdk.Client) error {
		return func(w *world, api *sdk.Client) error {
			_, err := api.CreateTags(w.t.Context(), &sdk.CreateTagsInput{Resources: []string{find(w, value)}, Tags: tags(pairs...)})
			return err
		}
	}
	list := func(w *world, api *sdk.Client) error {
		_, err := api.DescribeVolumes(w.t.Context(), &sdk.DescribeVolumesInput{})
		return err
	}
	snapshot := func(w *world, api *sdk.Client) error {
		_, err := api.CreateSnapshot(w.t.Context(), &sdk.CreateSnapshotInput{VolumeId: aws.String(find(w, "blue"))})
		return err
	}
	for name, test := range map[string]struct {
		policy []byte
		call   func(*world, *sdk.Client) error
		denied string // the action that is denied; "" for none
	}{
		"reads on all":                         {allow(`"ec2:Describe*"`, `"*"`, ""), list, ""},
		"reads on one volume are not reads":    {allow(`"ec2:Describe*"`, arn+`volume/*"`, ""), list, "ec2:DescribeVolumes"},
		"actions' case does not matter":        {allow(`"EC2:describevolumes"`, `"*"`, ""), list, ""},
		"another action":                       {allow(`["ec2:AttachVolume"]`, `"*"`, ""), list, "ec2:DescribeVolumes"},
		"a volume without tags":                {allow(`"ec2:CreateVolume"`, `"*"`, ""), create(), ""},
		"a volume with tags needs CreateTags":  {allow(`"ec2:CreateVolume"`, `"*"`, ""), create(own, "blue"), "ec2:CreateTags"},
		"both":                                 {allow(`["ec2:CreateVolume", "ec2:CreateTags"]`, arn+`volume/*"`, ""), create(own, "blue"), ""},
		"tags only as part of a create":        {allow(`["ec2:CreateTags"]`, `"*"`, `{"StringEquals": {"ec2:CreateAction": "CreateVolume"}}`), tag("blue", "a", "b"), "ec2:CreateTags"},
		"attach on the volume alone":           {allow(`"ec2:AttachVolume"`, arn+`volume/*"`, ""), attach, "ec2:AttachVolume on resource: arn:aws:ec2:eu-test-1:123456789012:instance/"},
		"attach on both":                       {allow(`"ec2:AttachVolume"`, `[`+arn+`volume/*", `+arn+`instance/*"]`, ""), attach, ""},
		"attach on both of one tag":            {allow(`"ec2:AttachVolume"`, `"*"`, `{"StringEquals": {"aws:ResourceTag/cluster": "blue"}}`), attach, "ec2:AttachVolume"},
		"delete what is ours":                  {allow(`"ec2:DeleteVolume"`, `"*"`, `{"StringEquals": {"ec2:ResourceTag/cluster": "blue"}}`), remove("blue"), ""},
		"delete another's":                     {allow(`"ec2:DeleteVolume"`, `"*"`, `{"StringEquals": {"ec2:ResourceTag/cluster": "blue"}}`), remove("red"), "ec2:DeleteVolume"},
		"delete with a similar tag":            {allow(`"ec2:DeleteVolume"`, `"*"`, `{"StringLike": {"aws:ResourceTag/cluster": "bl?*"}}`), remove("blue"), ""},
		"delete if the tag exists":             {allow(`"ec2:DeleteVolume"`, `"*"`, `{"Null": {"aws:ResourceTag/cluster": "false"}}`), remove("red"), ""},
		"delete if the tag is absent":          {allow(`"ec2:DeleteVolume"`, `"*"`, `{"Null": {"aws:ResourceTag/cluster": "true"}}`), remove("red"), "ec2:DeleteVolume"},
		"create with our tag":                  {allow(`"ec2:*"`, `"*"`, `{"StringEquals": {"aws:RequestTag/cluster": "blue"}}`), create(own, "blue", "a", "b"), ""},
		"create with another":                  {allow(`"ec2:*"`, `"*"`, `{"StringEquals": {"aws:RequestTag/cluster": "blue"}}`), create(own, "red"), "ec2:CreateVolume"},
		"create without":                       {allow(`"ec2:*"`, `"*"`, `{"StringEquals": {"aws:RequestTag/cluster": "blue"}}`), create(), "ec2:CreateVolume"},
		"create without, if it exists":         {allow(`"ec2:*"`, `"*"`, `{"StringEqualsIfExists": {"aws:RequestTag/cluster": "blue"}}`), create(), ""},
		"create with these keys only":          {allow(`"ec2:*"`, `"*"`, `{"ForAllValues:StringEquals": {"aws:TagKeys": ["cluster", "a"]}}`), create(own, "blue"), ""},
		"create with a further key":            {allow(`"ec2:*"`, `"*"`, `{"ForAllValues:StringEquals": {"aws:TagKeys": ["cluster", "a"]}}`), create(own, "blue", "b", ""), "ec2:CreateVolume"},
		"create with any of these keys":        {allow(`"ec2:*"`, `"*"`, `{"ForAnyValue:StringEquals": {"aws:TagKeys": ["cluster", "a"]}}`), create(own, "blue", "b", ""), ""},
		"create with none of them":             {allow(`"ec2:*"`, `"*"`, `{"ForAnyValue:StringEquals": {"aws:TagKeys": ["cluster", "a"]}}`), create("b", ""), "ec2:CreateVolume"},
		"create without keys, for all of them": {allow(`"ec2:*"`, `"*"`, `{"ForAllValues:StringEquals": {"aws:TagKeys": "a"}}`), create(), ""},
		"tag what is ours":                     {allow(`"ec2:CreateTags"`, `"*"`, `{"StringEquals": {"aws:ResourceTag/cluster": "blue"}}`), tag("blue", "a", "b"), ""},
		"tag another's":                        {allow(`"ec2:CreateTags"`, `"*"`, `{"StringEquals": {"aws:ResourceTag/cluster": "blue"}}`), tag("red", own, "blue"), "ec2:CreateTags"},
		"a snapshot needs both":                {allow(`"ec2:CreateSnapshot"`, arn+`volume/*"`, ""), snapshot, "ec2:CreateSnapshot on resource: arn:aws:ec2:eu-test-1::snapshot/*"},
		"a snapshot with both":                 {allow(`"ec2:CreateSnapshot"`, `[`+arn+`volume/*", "arn:aws:ec2:*::snapshot/*"]`, ""), snapshot, ""},
		"Deny overrides Allow": {[]byte(`{"Version": "2012-10-17", "Statement": [
			{"Effect": "Allow", "Action": "*", "Resource": "*"}, {"Effect": "Deny", "Action": "ec2:Delete*", "Resource": "*"}]}`), remove("blue"), "ec2:DeleteVolume"},
	} {
		w := newWorld(t, cloud.Config{}, ec2.Config{Policy: test.policy})
		account := w.clientOf("", nil)
		for _, cluster := range []string{"blue", "red"} {
			require.NoError(t, create(own, cluster)(w, account), "no policy binds the account")
		}
		err := test.call(w, w.api)
		if test.denied == "" {
			require.NoError(t, err, name)
			continue
		}
		require.Equal(t, "UnauthorizedOperation", code(t, err), name)
		require.ErrorContains(t, err, "You are not authorized to perform this operation. User: arn:aws:sts::123456789012:assumed-role/blockvol-node/"+w.instance.ID+" is not authorized to perform: "+test.denied, name)
		assert.ErrorContains(t, err, "Encoded authorization failure message: ", name)
	}
}

func TestUnsupportedPolicyIsRefused(t *testing.T) {
	for name, document := range map[string]string{
		"no JSON":                `Allow everything`,
		"an old version":         `{"Version": "2008-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}`,
		"no statement":           `{"Version": "2012-10-17"}`,
		"an effect":              `{"Version": "2012-10-17", "Statement": {"Effect": "Maybe", "Action": "*", "Resource": "*"}}`,
		"NotAction":              `{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "NotAction": "*", "Resource": "*"}}`,
		"a condition's key":      `{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"StringEquals": {"aws:SourceIp": "10.0.0.1"}}}}`,
		"a condition's operator": `{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"DateLessThan": {"aws:TagKeys": "a"}}}}`,
	} {
		require.Error(t, ec2.CheckPolicy([]byte(document)), name)
	}
	require.NoError(t, ec2.CheckPolicy(allow(`"*"`, `"*"`, "")))
	assert.Panics(t, func() { ec2.New(ec2.Config{Policy: []byte("{}")}) })
}
