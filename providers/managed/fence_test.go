package managed

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestARefusalToPowerANodeOffIsJudgedByItsStatus(t *testing.T) {
	refused := errors.New("the cloud says no")
	busy := fmt.Errorf("%w: locked", providers.ErrBusy)
	powered := fmt.Errorf("%w: off", ErrPowered)
	running, stopped := NodeStatus{Word: `"on"`, Life: providers.Running}, NodeStatus{Word: `"off"`, Life: providers.Stopped}
	stopping, gone := NodeStatus{Word: `"going"`, Life: providers.Running, Stopping: true}, NodeStatus{Word: `"ended"`, Life: providers.Gone}
	for name, test := range map[string]struct {
		refusal error
		status  NodeStatus
		off, on error // what the calls return; nil is success
	}{
		"refused, it runs":            {refused, running, refused, nil},
		"refused, it is off":          {refused, stopped, nil, refused},
		"refused, it is going off":    {refused, stopping, nil, refused},
		"refused, it is gone":         {refused, gone, providers.ErrNotFound, providers.ErrNotFound},
		"busy, it runs":               {busy, running, providers.ErrBusy, providers.ErrBusy},
		"busy, it is off":             {busy, stopped, providers.ErrBusy, providers.ErrBusy}, // perhaps with its start
		"busy, it is going off":       {busy, stopping, nil, providers.ErrBusy},
		"it is so, an answer says no": {powered, NodeStatus{Life: providers.Unclear}, providers.ErrBusy, providers.ErrBusy},
		"certain":                     {Certain(refused), stopped, refused, refused},
		"denied":                      {fmt.Errorf("%w: never", providers.ErrDenied), stopped, providers.ErrDenied, providers.ErrDenied},
		"no answer":                   {providers.ErrUnavailable, stopped, providers.ErrUnavailable, providers.ErrUnavailable},
		"it is not known, and runs":   {providers.ErrNotFound, running, nil, nil}, // see below
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			c := &tiny{}
			p := c.provider()
			p.cloud.Manual, p.cloud.FenceRight = "docs/x.md", "everything"
			p.cloud.Status = func(context.Context, string) (NodeStatus, error) { return test.status, nil }
			ask := func(_ context.Context, node string) error {
				asked++
				assert.Equal(t, "8", node)
				return test.refusal
			}
			p.cloud.PowerOff, p.cloud.PowerOn = ask, ask
			for call, want := range map[string]error{"off": test.off, "on": test.on} {
				asked = 0
				err := map[string]func(context.Context, string) error{"off": p.PowerOff, "on": p.PowerOn}[call](t.Context(), "8")
				assert.Equal(t, 1, asked)
				switch {
				case errors.Is(test.refusal, providers.ErrNotFound):
					require.Error(t, err)
					require.NotErrorIs(t, err, providers.ErrNotFound, "the cloud contradicts itself")
				case want == nil:
					require.NoError(t, err, call)
				default:
					require.ErrorIs(t, err, want, call)
				}
				if errors.Is(want, providers.ErrDenied) {
					require.ErrorContains(t, err, "blockvol needs everything: see docs/x.md")
				}
			}
		})
	}
}

func TestThisNodeIsNotPoweredOff(t *testing.T) {
	p := (&tiny{}).provider()
	p.cloud.PowerOff = func(context.Context, string) error { t.Error("it was asked for"); return nil }
	require.ErrorIs(t, p.PowerOff(t.Context(), "7"), providers.ErrInvalid)
	p = (&tiny{err: providers.ErrUnavailable}).provider() // which node this is, is not known
	p.cloud.PowerOff = func(context.Context, string) error { t.Error("it was asked for"); return nil }
	require.ErrorIs(t, p.PowerOff(t.Context(), "8"), providers.ErrUnavailable)
}

func TestWhatTheCloudDoesNotTellOfItsRightsIsSaid(t *testing.T) {
	denied := fmt.Errorf("%w: no", providers.ErrDenied)
	for name, test := range map[string]struct {
		tried    string
		off, on  error
		severity providers.Severity
		words    string
	}{
		"nothing told":  {"", nil, nil, providers.OK, "cannot be tried without doing it: they need everything, see docs/x.md"},
		"all allowed":   {"both are allowed", nil, nil, providers.OK, "both are allowed"},
		"off refused":   {"", denied, nil, providers.Problem, "needs everything"},
		"on refused":    {"", nil, denied, providers.Warning, "stays off"},
		"cloud is away": {"", nil, providers.ErrUnavailable, providers.Problem, "cannot be reached"},
	} {
		t.Run(name, func(t *testing.T) {
			p := (&tiny{}).provider()
			p.cloud.Manual, p.cloud.FenceRight = "docs/x.md", "everything"
			p.cloud.TryFence = func(context.Context) (string, error, error) { return test.tried, test.off, test.on }
			f := p.ExamineFence(t.Context())
			assert.Equal(t, test.severity, f.Severity)
			assert.Contains(t, f.Message, test.words)
			assert.Equal(t, f.Severity == providers.OK, f.Code == "" && f.Remedy == "")
		})
	}
}
