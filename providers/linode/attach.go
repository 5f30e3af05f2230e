package linode

import (
	"context"
	"fmt"
	"net/http"
	"time"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers"
)

// attach asks for the volume to be attached until the Linode shuts down, see the package comment.
func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	persist, n, self := false, number(id), number(node)
	_, err := call(ctx, p, "the request to attach volume "+id, func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.AttachVolume(ctx, n, &sdk.VolumeAttachOptions{LinodeID: self, PersistAcrossBoots: &persist})
	}, func(v *sdk.Volume) bool { return v.ID == n && v.LinodeID != nil && *v.LinodeID == self })
	return "", err
}

// detach asks for the volume to be detached. A read right before has shown that the node holds it.
//
// The request does not name the Linode. So between the read and the request's arrival, somebody else could detach the volume and attach
// it to another node, from which this request would take it. To keep that time short, the request is sent once, within a second of
// the read, or not at all: if it has to wait, since the Linode is busy or the account is throttled, the holder is read again; and none
// is sent while an accepted detach is under way. Only a node's own driver detaches from it, one volume at a time. So what remains
// takes two nodes that take over from a third at the same moment, or somebody at the console.
//
// There is no force: Linode's detach does not wait for the machine.
func (p *Provider) detach(ctx context.Context, id, node string, _ bool) (string, error) {
	return "", p.do(onceSoon(ctx), fmt.Sprintf("the request to detach volume %s from Linode %s", id, node), func(ctx context.Context) error {
		return p.api.DetachVolume(ctx, number(id))
	})
}

// leaving is how long a detach is taken to be under way while the volume is shown as attached. It usually takes seconds. One that
// takes longer has failed, and is asked for again.
const leaving = time.Minute

// soon is how long after the holder was read a detach may be sent.
const soon = time.Second

// permit allows one request.
type permit struct {
	until time.Time
	used  bool
}

type permitKey struct{}

// onceSoon returns a context whose request is sent once, and soon, or not at all.
func onceSoon(ctx context.Context) context.Context {
	return context.WithValue(ctx, permitKey{}, &permit{until: time.Now().Add(soon)})
}

// errLookAgain is for a request that was not sent.
var errLookAgain = fmt.Errorf("%w: the request had to wait too long", providers.ErrBusy)

// permitted refuses a request whose permit is used or has expired.
func permitted(r *http.Request) error {
	if may, needed := r.Context().Value(permitKey{}).(*permit); needed {
		if may.used || time.Now().After(may.until) {
			return errLookAgain
		}
		may.used = true
	}
	return nil
}
