package ec2_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

func TestInstancesAreStoppedAndStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Times: cloud.Times{Stop: time.Second, Shutdown: time.Minute, Terminate: time.Second}}, ec2.Config{})
		id := w.instance.ID
		type moves struct{ was, is types.InstanceStateName }
		change := func(changes []types.InstanceStateChange, err error) moves {
			t.Helper()
			require.NoError(t, err)
			require.Len(t, changes, 1)
			assert.Equal(t, id, *changes[0].InstanceId)
			return moves{changes[0].PreviousState.Name, changes[0].CurrentState.Name}
		}
		stop := func(hard bool) ([]types.InstanceStateChange, error) {
			in := &sdk.StopInstancesInput{InstanceIds: []string{id}}
			if hard {
				in.Force, in.SkipOsShutdown = aws.Bool(true), aws.Bool(true)
			}
			out, err := w.api.StopInstances(t.Context(), in)
			if err != nil {
				return nil, err
			}
			return out.StoppingInstances, nil
		}
		start := func() ([]types.InstanceStateChange, error) {
			out, err := w.api.StartInstances(t.Context(), &sdk.StartInstancesInput{InstanceIds: []string{id}})
			if err != nil {
				return nil, err
			}
			return out.StartingInstances, nil
		}

		assert.Equal(t, moves{"running", "running"}, change(start()))
		assert.Equal(t, moves{"running", "stopping"}, change(stop(false)))
		time.Sleep(time.Minute)
		assert.Equal(t, moves{"stopping", "stopping"}, change(stop(false)), "the system is asked first")
		assert.Equal(t, moves{"stopping", "stopping"}, change(stop(true)))
		_, err := start()
		assert.Equal(t, "IncorrectInstanceState", code(t, err))
		time.Sleep(2 * time.Second)
		assert.Equal(t, moves{"stopped", "stopped"}, change(stop(true)))
		assert.Equal(t, moves{"stopped", "pending"}, change(start()))
		assert.Equal(t, moves{"pending", "pending"}, change(start()))
		_, err = stop(true)
		assert.Equal(t, "IncorrectInstanceState", code(t, err))
		time.Sleep(2 * time.Second)
		assert.Equal(t, moves{"running", "stopping"}, change(stop(true)))
		time.Sleep(2 * time.Second)
		i, _ := w.cloud.Instance(id)
		assert.Equal(t, cloud.Stopped, i.State)
		w.cloud.Terminate(id)
		_, err = stop(true)
		assert.Equal(t, "IncorrectInstanceState", code(t, err))
		id = "i-0123456789abcdef0"
		_, err = stop(true)
		assert.Equal(t, "InvalidInstanceID.NotFound", code(t, err))
		id = "i-1"
		_, err = start()
		assert.Equal(t, "InvalidInstanceID.Malformed", code(t, err))
	})
}

func TestStopNeedsPermissionOnTheInstance(t *testing.T) {
	policy := `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "ec2:StopInstances",
		"Resource": "arn:aws:ec2:*:*:instance/*", "Condition": {"StringEquals": {"aws:ResourceTag/team": "storage"}}}]}`
	w := newWorld(t, cloud.Config{}, ec2.Config{Policy: []byte(policy)})
	ours := w.cloud.AddInstance(cloud.Instance{Tags: map[string]string{"team": "storage"}})
	for _, test := range []struct{ id, code string }{{ours.ID, "DryRunOperation"}, {w.instance.ID, "UnauthorizedOperation"}} {
		_, err := w.api.StopInstances(t.Context(), &sdk.StopInstancesInput{InstanceIds: []string{test.id}, DryRun: aws.Bool(true)})
		assert.Equal(t, test.code, code(t, err))
	}
	_, err := w.api.StartInstances(t.Context(), &sdk.StartInstancesInput{InstanceIds: []string{ours.ID}})
	assert.Equal(t, "UnauthorizedOperation", code(t, err))
	i, _ := w.cloud.Instance(ours.ID)
	assert.Equal(t, cloud.Running, i.State)
}
