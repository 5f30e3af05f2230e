package aws

import (
	"context"
	"errors"
	"fmt"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
)

// powerOff stops the instance without its help: with Force alone, EC2 lets the system shut down first.
func (p *Provider) powerOff(ctx context.Context, node string) error {
	out, err := once(ctx, p, (*ec2.Client).StopInstances, &ec2.StopInstancesInput{InstanceIds: []string{node}, Force: sdk.Bool(true), SkipOsShutdown: sdk.Bool(true)})
	if err != nil {
		return ofInstance(err)
	}
	return isAbout(node, "StopInstances", out.StoppingInstances)
}

func (p *Provider) powerOn(ctx context.Context, node string) error {
	out, err := once(ctx, p, (*ec2.Client).StartInstances, &ec2.StartInstancesInput{InstanceIds: []string{node}})
	if err != nil {
		return ofInstance(err)
	}
	return isAbout(node, "StartInstances", out.StartingInstances)
}

// ofInstance returns an error of a request that is about an instance alone.
func ofInstance(err error) error {
	switch {
	case errors.Is(err, errNoInstance):
		return fmt.Errorf("%w: %w", providers.ErrNotFound, errNoInstance)
	case errors.Is(err, errNeverStops):
		return managed.Certain(err)
	}
	return err
}

// isAbout checks that an answer is to the request.
func isAbout(node, action string, changes []types.InstanceStateChange) error {
	if len(changes) != 1 || sdk.ToString(changes[0].InstanceId) != node {
		return fmt.Errorf("%w: the answer to %s is about something else, or about nothing: check AWS_ENDPOINT_URL_EC2, and any proxy on the way", providers.ErrUnavailable, action)
	}
	return nil
}

// tryFence tries both by dry runs on this instance itself, which has the tags that the policy asks for if the nodes have them.
func (p *Provider) tryFence(ctx context.Context) (tried string, off, on error) {
	self, err := p.self(ctx)
	if err != nil {
		return "", err, nil
	}
	off = trial(ctx, p, (*ec2.Client).StopInstances, &ec2.StopInstancesInput{DryRun: sdk.Bool(true), InstanceIds: []string{self.ID}, Force: sdk.Bool(true), SkipOsShutdown: sdk.Bool(true)})()
	on = trial(ctx, p, (*ec2.Client).StartInstances, &ec2.StartInstancesInput{DryRun: sdk.Bool(true), InstanceIds: []string{self.ID}})()
	return "EC2 allows to stop and start instance " + self.ID + ", which this node is, according to dry runs", off, on
}
