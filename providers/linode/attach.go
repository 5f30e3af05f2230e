package linode

import (
	"context"
	"fmt"
	"net/http"
	"time"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers"
)

// attach asks for the volume for as long as the Linode runs, see the package's comment.
func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	persist, n, self := false, number(id), number(node)
	_, err := call(ctx, p, "the request to attach volume "+id, func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.AttachVolume(ctx, n, &sdk.VolumeAttachOptions{LinodeID: self, PersistAcrossBoots: &persist})
	}, func(v *sdk.Volume) bool { return v.ID == n && v.LinodeID != nil && *v.LinodeID == self })
	return "", err
}

// detach asks for the volume to be detached. The node holds it, as was seen right before.
//
// The request does not say from which Linode. So there is a moment, between the look and the request's arrival, in which somebody
// else could detach the volume from that node and attach it to another, from which this takes it then. To keep it short the
// request is sent once and soon after the look, or not at all: what has to wait, since the Linode is busy or the account asks
// too much, looks again; and none is sent while one that Linode has taken is under way. The driver alone detaches from its own
// node, once at a time; so what remains takes two nodes that take over from a third within the same moment, or hands in the
// console.
//
// Linode has no force: its detach does not wait for the machine.
func (p *Provider) detach(ctx context.Context, id, node string, _ bool) (string, error) {
	return "", p.do(onceSoon(ctx), fmt.Sprintf("the request to detach volume %s from Linode %s", id, node), func(ctx context.Context) error {
		return p.api.DetachVolume(ctx, number(id))
	})
}

// leaving is how long a detach that was asked for is believed to be under way while the volume is shown attached. It takes
// seconds, as a rule; one that takes longer has failed, and can be asked for again.
const leaving = time.Minute

// soon is how long after a look at who holds a volume a detach may be sent.
const soon = time.Second

// permit is what lets a request go out, once.
type permit struct {
	until time.Time
	used  bool
}

type permitKey struct{}

// onceSoon lets the request that is made with the context go out once, and soon.
func onceSoon(ctx context.Context) context.Context {
	return context.WithValue(ctx, permitKey{}, &permit{until: time.Now().Add(soon)})
}

// errLookAgain is of a request that was not sent.
var errLookAgain = fmt.Errorf("%w: the request had to wait too long", providers.ErrBusy)

// permitted tells whether a request may be sent now: what needs a permit goes with one only.
func permitted(r *http.Request) error {
	if may, needed := r.Context().Value(permitKey{}).(*permit); needed {
		if may.used || time.Now().After(may.until) {
			return errLookAgain
		}
		may.used = true
	}
	return nil
}
