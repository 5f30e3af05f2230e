package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	linodeFront "github.com/blockvol/blockvol/test/cloud/linode"
	stackFront "github.com/blockvol/blockvol/test/cloud/openstack"
)

// sentences are the errors that operators read for problems with a cloud. An ellipsis is for text that varies. Docker shows
// them after the name of the call. The driver adds the volume and the node.
var sentences = map[string]struct{ revoked, cutShort, deleted, withoutVolumes string }{
	"aws": {
		revoked:        `EC2 refuses …: AWS was not able to validate the provided access credentials (AuthFailure): check that the keys are right and active, in AWS_ACCESS_KEY_ID or this instance's role, and that this node's clock is right`,
		cutShort:       `cloud cannot be reached: the answer to … is not EC2's, or is cut short (…): check AWS_ENDPOINT_URL_EC2, and any proxy on the way`,
		deleted:        `no such volume: EC2 has none named "gone" in cluster "default"…`,
		withoutVolumes: `not accepted: EC2 refuses CreateVolume: The specified volume type is not supported. (UnknownVolumeType.Unsupported): choose a type that this zone has with -o type=…, or another zone with -o zone=…`,
	},
	"digitalocean": {
		revoked:        `DigitalOcean refuses the request …: "Unable to authenticate you." (status 401, its request …): the token is wrong, revoked or expired: put another into DIGITALOCEAN_TOKEN, or into the file that DIGITALOCEAN_TOKEN_FILE names`,
		cutShort:       `cloud cannot be reached: the answer of DigitalOcean to … is not its own, or is cut short (…): check the network, DIGITALOCEAN_API_URL and any proxy on the way`,
		deleted:        `no such volume: DigitalOcean has none named "gone" in cluster "default"`,
		withoutVolumes: `not accepted: DigitalOcean refuses the request to make volume "new-…": "Storage is not supported for this region" (status 422, its request …): run the service in a region that has volumes`,
	},
	"hetzner": {
		revoked:        `Hetzner Cloud refuses the request …: unable to authenticate (unauthorized): the token is wrong, or has been revoked: make one in the project's console, and set HCLOUD_TOKEN or the file that HCLOUD_TOKEN_FILE names`,
		cutShort:       `cloud cannot be reached: the answer of Hetzner Cloud to … is not its own, or is cut short (…): check the network, HCLOUD_ENDPOINT and any proxy on the way`,
		deleted:        `no such volume: Hetzner Cloud has none named "gone" in cluster "default"`,
		withoutVolumes: `no space or quota left: Hetzner Cloud refuses the request to create volume "new" in location fsn1: there is no volume space left in this location (no_space_left_in_location): try again later, or another location with -o zone=…`,
	},
	"linode": {
		revoked:        `the token is not accepted by Linode (Invalid Token): see that LINODE_TOKEN or LINODE_TOKEN_FILE holds a personal access token that has neither expired nor been revoked`,
		cutShort:       `cloud cannot be reached: the answer of Linode to … is not its own, or is cut short (…): check the network, LINODE_API_URL and any proxy on the way`,
		deleted:        `no such volume: Linode has none named "gone" in cluster "default"`,
		withoutVolumes: `not accepted: Linode refuses the request to create volume new-…: "region: region is not valid": only regions with Block Storage have volumes, run the service in one of them`,
	},
	"openstack": {
		revoked:        `the credentials are not accepted: Keystone says: The request you have made requires authentication. (401): check OS_APPLICATION_CREDENTIAL_ID (or _NAME) and OS_APPLICATION_CREDENTIAL_SECRET, and that they have not expired or been revoked`,
		cutShort:       `cloud cannot be reached: the answer of OpenStack to … is not its own, or is cut short (…): check the network, OS_AUTH_URL and any proxy on the way`,
		deleted:        `no such volume: OpenStack has none named "gone" in cluster "default"`,
		withoutVolumes: `the catalogue of OpenStack has no public endpoint of Cinder (block-storage, volumev3, block-store, volume): this cloud has no such service, or OS_INTERFACE is not right`,
	},
}

// One volume is written to all the time, one is mounted repeatedly, and one will be deleted.
func TestCloudProblemsAreReportedAndLoseNothing(t *testing.T) {
	t.Parallel()
	for _, kind := range fronts.All {
		t.Run(kind.Provider, func(t *testing.T) {
			t.Parallel()
			s, want := launchIntoTrouble(t, kind), sentences[kind.Provider]
			var creating errgroup.Group // concurrently, since each takes seconds on OpenStack
			for _, volume := range []string{"db", "gone", "busy"} {
				creating.Go(func() error {
					_, err := s.Try("volume", "create", "--driver", "blockvol", "--opt", "size=10GiB", volume)
					return err
				})
			}
			require.NoError(t, creating.Wait())
			once(s.Engine, "db", "echo hello >/data/letter")
			startWriter(t, s.Engine, "busy")
			s.Docker("create", "--name", "user", "--volume", "gone:/data", "busybox", "true")

			t.Log("revoked token")
			renew := s.revoke(t)
			s.mountIsRefused(t, want.revoked)
			s.answersQuickly(t)
			awaitLines(t, s.Engine, 10)
			renew()
			s.assertIntact(t)

			t.Log("truncated answers")
			s.account.Inject(cloud.Rule{Fault: cloud.Truncate, Times: 1})
			s.assertIntact(t)
			restore := s.account.Inject(cloud.Rule{Fault: cloud.CutShort})
			s.mountIsRefused(t, want.cutShort)
			s.answersQuickly(t)
			awaitLines(t, s.Engine, 10)
			s.Docker("rm", "--force", "writer") // the disk is released later
			restore()
			s.assertIntact(t)

			t.Log("cloud's clock ahead, with rate limit reset times")
			s.setClock(61 * time.Minute)
			s.limit.Store(&cloud.Bucket{Size: 2, PerSecond: 1})
			s.assertIntact(t)
			s.limit.Store(&cloud.Bucket{})

			t.Log("cloud's clock behind")
			s.setClock(-61 * time.Minute)
			s.assertIntact(t)
			s.setClock(0)

			t.Log("deleted volume")
			err := s.startDeleted(t, "user", "gone")
			s.assertSentence(t, err, `VolumeDriver.Mount: `+want.deleted+` (volume "gone", …node `+s.id+`); if nobody has removed it, see the cloud's own records for who deleted its disk`)
			assert.ElementsMatch(t, []string{"db", "busy"}, s.disks(), "no other volume replaces it")
			s.eventuallyReleased()
			assertNothingLost(t, s.Engine, "busy")

			t.Log("region without volumes")
			s.takeVolumesFromRegion(t)
			_, err = s.Try("volume", "create", "--driver", "blockvol", "new")
			s.assertSentence(t, err, `VolumeDriver.Create: `+want.withoutVolumes)
			assert.ElementsMatch(t, []string{"db", "busy"}, s.disks(), "no incomplete volume is left")
		})
	}
}

// troubled is a server whose account the test controls.
type troubled struct {
	*server
	limit   *atomic.Pointer[cloud.Bucket] // of all calls
	secrets []string                      // secrets that must not be shown
}

// launchIntoTrouble returns a server whose token is in a file that is created after the plugin's start.
func launchIntoTrouble(t *testing.T, kind fronts.Kind) *troubled {
	t.Helper()
	s := &troubled{limit: new(atomic.Pointer[cloud.Bucket])}
	s.limit.Store(&cloud.Bucket{})
	kind.Cloud.Limits = func(string) cloud.Bucket { return *s.limit.Load() }
	settings := kind.Settings
	kind.Settings = func(f fronts.Front, instance, api, metadata string) []string {
		all := settings(f, instance, api, metadata)
		for i, setting := range all {
			if name, value, _ := strings.Cut(setting, "="); strings.HasSuffix(name, "_TOKEN") || strings.HasSuffix(name, "_SECRET") {
				all[i] = name + "_FILE=/data/state/token"
				s.secrets = append(s.secrets, value)
			}
		}
		return all
	}
	s.server = openAccount(t, kind).launch(t, "--copy-up-probe=0") // every mount calls the cloud
	for _, secret := range s.secrets {
		s.putToken(t, secret)
	}
	if aws, is := s.account.front.(interface {
		Credentials(instance string) (keyID, secret, token string)
	}); is {
		_, secret, token := aws.Credentials(s.id)
		s.secrets = append(s.secrets, secret, token)
	}
	require.NotEmpty(t, s.secrets)
	t.Cleanup(func() {
		for _, secret := range s.secrets {
			assert.NotContains(t, s.Log(), secret)
		}
	})
	return s
}

func (s *troubled) putToken(t *testing.T, secret string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(s.State, "token"), []byte(secret+"\n"), 0o600))
}

// revoke makes the cloud refuse all calls of the node. Function renew gives it a new token, or the old one where there is only
// one.
func (s *troubled) revoke(t *testing.T) (renew func()) {
	t.Helper()
	switch front := s.account.front.(type) {
	case *stackFront.Front:
		front.Revoke(s.id)
		return func() { front.Restore(s.id) }
	case interface {
		Token(instance string) string
		Revoke(token string)
	}:
		front.Revoke(s.secrets[0])
		return func() {
			another := front.Token("another")
			s.secrets = append(s.secrets, another)
			s.putToken(t, another)
		}
	default:
		return s.account.Inject(cloud.Rule{Fault: cloud.Fail, Code: "AuthFailure"})
	}
}

// setClock sets the cloud's clock. OpenStack then issues tokens by this clock.
func (s *troubled) setClock(ahead time.Duration) {
	s.account.SetClock(ahead)
	s.endTokens()
}

// endTokens expires OpenStack's tokens.
func (s *troubled) endTokens() {
	if front, is := s.account.front.(*stackFront.Front); is {
		front.Expire(s.id)
	}
}

// takeVolumesFromRegion makes volumes unavailable: on EC2, gp3; at Hetzner, where all locations have volumes, there is no space
// left. On OpenStack it takes 15 seconds to look for an existing volume.
func (s *troubled) takeVolumesFromRegion(t *testing.T) {
	t.Helper()
	refuse := func(action, code string) {
		s.account.Inject(cloud.Rule{Action: action, Fault: cloud.Fail, Code: code})
	}
	switch front := s.account.front.(type) {
	case *linodeFront.Front:
		front.Withdraw(s.account.Zones()[0])
	case *stackFront.Front:
		front.Withdraw("volumev3")
		s.endTokens()
	default:
		switch s.account.kind.Provider {
		case "aws":
			refuse("CreateVolume", "UnknownVolumeType.Unsupported")
		case "digitalocean":
			refuse("POST /v2/volumes", "422 Storage is not supported for this region")
		case "hetzner":
			refuse("POST /v1/volumes", "no_space_left_in_location there is no volume space left in this location")
		default:
			t.Fatalf("no way to refuse volumes of %s", s.account.kind.Name)
		}
	}
}

// assertSentence checks that Docker shows this sentence and no secret.
func (s *troubled) assertSentence(t *testing.T, err error, sentence string) {
	t.Helper()
	require.Error(t, err)
	for _, secret := range s.secrets {
		assert.NotContains(t, err.Error(), secret)
	}
	_, message, _ := strings.Cut(err.Error(), "Error response from daemon: ")
	message, _, _ = strings.Cut(message, "\n")
	if _, after, is := strings.Cut(message, "VolumeDriver."); is {
		message = "VolumeDriver." + after
	}
	providertest.Sentence(t, errors.New(message))
	assert.Regexp(t, "^"+strings.ReplaceAll(regexp.QuoteMeta(sentence), "…", ".*")+`\.?$`, message)
	t.Log(message)
}

func (s *troubled) mountIsRefused(t *testing.T, sentence string) {
	t.Helper()
	_, err := s.Try("run", "--rm", "--volume", "db:/data", "busybox", "true")
	s.assertSentence(t, err, `VolumeDriver.Mount: `+sentence+` (volume "db", …node `+s.id+`)`)
}

// assertIntact checks that the data is there.
func (s *troubled) assertIntact(t *testing.T) {
	t.Helper()
	begin := time.Now()
	assert.Equal(t, "hello", once(s.Engine, "db", "cat /data/letter"))
	assert.Less(t, time.Since(begin), 30*time.Second)
}

// answersQuickly checks that Docker can list and inspect the volumes although the cloud does not answer.
func (s *troubled) answersQuickly(t *testing.T) {
	t.Helper()
	begin := time.Now()
	assert.ElementsMatch(t, []string{"db", "gone", "busy"}, strings.Fields(s.Docker("volume", "ls", "--quiet")))
	for _, volume := range []string{"db", "busy"} {
		assert.Equal(t, "blockvol:latest", s.Docker("volume", "inspect", "--format", "{{.Driver}}", volume))
	}
	assert.Less(t, time.Since(begin), 10*time.Second)
}

// disks returns the names of the cloud's volumes.
func (s *troubled) disks() (names []string) {
	for _, v := range fronts.Disks(s.account.Cloud) {
		name := v.ID
		for _, of := range []string{"db", "busy", "gone", "new"} {
			if s.account.kind.Named(v, "default", of) {
				name = of
			}
		}
		names = append(names, name)
	}
	return names
}

// startDeleted starts a container whose volume is deleted in the cloud, and returns Docker's error. On a slow machine the plugin may
// have asked the cloud again before the Mount; then Docker makes no Mount, and the volume is created and deleted anew.
func (s *troubled) startDeleted(t *testing.T, container, volume string) error {
	t.Helper()
	for range 5 {
		s.deleteUnseen(t, volume)
		_, err := s.Try("start", "--attach", container)
		if err == nil || !strings.Contains(err.Error(), "get "+volume+": no such volume") {
			return err
		}
		t.Log("Docker learned of it before it asked for a Mount")
		s.Docker("volume", "create", "--driver", "blockvol", "--opt", "size=10GiB", volume)
	}
	t.Fatal("Docker never asked for a Mount")
	return nil
}

// deleteUnseen deletes a volume in the cloud right after the cloud has returned it to the plugin.
func (s *troubled) deleteUnseen(t *testing.T, name string) {
	t.Helper()
	s.Eventually("the cloud is asked for the volume", func() error {
		before := s.account.Calls()
		s.Docker("volume", "inspect", name)
		if maps.Equal(before, s.account.Calls()) {
			return errors.New("no call yet")
		}
		return nil
	})
	for _, v := range fronts.Disks(s.account.Cloud) {
		if !s.account.kind.Named(v, "default", name) {
			continue
		}
		_, err := s.account.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error { return r.DeleteVolume(v.ID) })
		require.NoError(t, err)
	}
	s.Eventually("the volume is deleted", func() error {
		for _, left := range s.disks() {
			if left == name {
				return fmt.Errorf("%s still exists", name)
			}
		}
		return nil
	})
}
