package aws

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

// withFence is the policy with that for TAKEOVER=fence.
func withFence(t *testing.T) policyDocument {
	t.Helper()
	text, err := os.ReadFile("../../docs/aws-fence-policy.json")
	require.NoError(t, err)
	var fence policyDocument
	require.NoError(t, json.Unmarshal(bytes.ReplaceAll(text, []byte(`cluster": "default"`), []byte(`cluster": "main"`)), &fence))
	doc := ours(t)
	doc.Statement = slices.Concat(doc.Statement, fence.Statement)
	return doc
}

const fenceSid = "PowerNodesOfThisClusterOffAndOn"

// ofCluster adds an instance with the tag that the policy asks for.
func (w *world) ofCluster(name string) string {
	return w.nodeOf(cloud.Instance{Type: "m5.large", Zone: region + "a", Tags: map[string]string{tagCluster: name}})
}

func (w *world) life(p *Provider, node string) providers.Life {
	w.t.Helper()
	state, err := p.NodeState(w.t.Context(), node)
	require.NoError(w.t, err)
	return state.Life
}

func TestTheFencePolicyAllowsItOnNodesOfTheCluster(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Stop: 20 * time.Second, Shutdown: time.Hour}}, func(t *testing.T, w *world) {
		here, there, other, nobodys := w.ofCluster("main"), w.ofCluster("main"), w.ofCluster("other"), w.node("a")
		p := w.on(here)
		require.NoError(t, p.PowerOff(t.Context(), there))
		assert.Equal(t, providers.Running, w.life(p, there), "it is stopping")
		time.Sleep(30 * time.Second)
		assert.Equal(t, providers.Stopped, w.life(p, there), "nothing has waited for its system")
		require.NoError(t, p.PowerOn(t.Context(), there))
		require.ErrorIs(t, p.PowerOff(t.Context(), there), providers.ErrBusy, "it is pending")
		time.Sleep(time.Minute)
		assert.Equal(t, providers.Running, w.life(p, there))
		assert.Equal(t, providers.OK, p.ExamineFence(t.Context()).Severity)

		for _, node := range []string{other, nobodys} {
			providertest.Sentence(t, p.PowerOff(t.Context(), node), "ec2:StopInstances", "IAM policy", "docs/aws.md")
			providertest.Sentence(t, p.PowerOn(t.Context(), node), "ec2:StartInstances", "IAM policy", "docs/aws.md")
			require.ErrorIs(t, p.PowerOff(t.Context(), node), providers.ErrDenied)
			assert.Equal(t, "permission-missing", w.on(node).ExamineFence(t.Context()).Code, "its own tag is not what the policy asks for")
			assert.Equal(t, providers.Running, w.life(p, node))
		}
	}, withFence(t).on(t))
}

func TestTheFencePolicyIsMinimal(t *testing.T) {
	for _, test := range []struct {
		action   string
		severity providers.Severity
		call     func(*Provider, *testing.T, string) error
	}{
		{"ec2:StopInstances", providers.Problem, func(p *Provider, t *testing.T, node string) error { return p.PowerOff(t.Context(), node) }},
		{"ec2:StartInstances", providers.Warning, func(p *Provider, t *testing.T, node string) error { return p.PowerOn(t.Context(), node) }},
	} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			p := w.on(w.ofCluster("main"))
			providertest.Sentence(t, test.call(p, t, w.ofCluster("main")), test.action, "docs/aws.md")
			f := p.ExamineFence(t.Context())
			assert.Equal(t, test.severity, f.Severity)
			assert.Contains(t, f.Message, test.action)
		}, withFence(t).without(fenceSid, test.action).on(t))
	}
}

func TestTheUsualPolicyPowersNothingOff(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p, there := w.on(w.ofCluster("main")), w.ofCluster("main")
		require.ErrorIs(t, p.PowerOff(t.Context(), there), providers.ErrDenied)
		assert.Equal(t, providers.Problem, p.ExamineFence(t.Context()).Severity)
		assert.Equal(t, providers.Running, w.life(p, there))
	}, ours(t).on(t))
}

func TestAnInstanceThatMayNotBeStoppedIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p, there := w.on(w.node("a")), w.node("a")
		for code, words := range map[string]string{"OperationNotPermitted": "stop protection", "UnsupportedOperation": "Spot"} {
			w.cloud.Inject(cloud.Rule{Action: "StopInstances", Fault: cloud.Fail, Code: code, Times: 1})
			err := p.PowerOff(t.Context(), there)
			require.ErrorIs(t, err, providers.ErrInvalid)
			providertest.Sentence(t, err, code, words)
		}
	})
}

// A status 503 alone does not say that EC2 has not begun.
func TestStopIsSentAgainOnlyAfterAThrottle(t *testing.T) {
	for code, sent := range map[string]int{"RequestLimitExceeded": 2, "Unavailable": 1, "ServiceUnavailable": 1, "InternalError": 1} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			p, there := w.on(w.node("a")), w.node("a")
			w.cloud.Inject(cloud.Rule{Action: "StopInstances", Fault: cloud.Fail, Code: code, Times: 1})
			err := p.PowerOff(t.Context(), there)
			assert.Equal(t, sent == 2, err == nil, "%s: %v", code, err)
			assert.Equal(t, sent, w.cloud.Calls()["StopInstances"], code)
		})
	}
}
