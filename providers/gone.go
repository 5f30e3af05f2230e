package providers

import (
	"context"
	"fmt"
)

// Missing is what it means that a cloud has said, in an answer of its own, that it does not know a node. The node is gone only
// if the cloud then shows the same credentials this node itself: to those of another account, project or region every node is
// missing.
//
// The kind is the cloud's word for its nodes. this is Provider.Node; shows tells whether the cloud shows a node, and its error
// is for every answer that is not the cloud's own.
func Missing(ctx context.Context, cloud, kind, node string, this func(context.Context) (Node, error), shows func(ctx context.Context, node string) (bool, error)) (NodeState, error) {
	self, err := this(ctx)
	if err != nil {
		return NodeState{}, err
	}
	shown, err := shows(ctx, self.ID)
	switch {
	case err != nil:
		return NodeState{}, err
	case !shown:
		return NodeState{Life: Unclear, Evidence: fmt.Sprintf("%s shows these credentials neither %s %s nor this node %s: they are of another account, project or region, or may not see them", cloud, kind, node, self.ID)}, nil
	}
	return NodeState{Life: Gone, Evidence: fmt.Sprintf("%s knows no %s %s", cloud, kind, node)}, nil
}
