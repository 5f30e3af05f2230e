package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cloud/loop"
	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/namespace"
	"github.com/blockvol/blockvol/test/violation"
)

// Tests of volumes on EBS. The engines are instances of a simulated EC2 with loop devices as disks. Each instance has a
// metadata service and a role with the policy in docs/.

const region, zone = "eu-test-1", "eu-test-1a"

// ec2Cloud is an EC2 account.
type ec2Cloud struct {
	*cloud.Cloud
	front *ec2.Front
	disks *loop.Backend

	dir     string // of the disks' images
	address string // of the next instance; "" for one of the cloud's choice
}

// startEC2 returns a cloud with short durations, which change can set.
func startEC2(t *testing.T, change func(*cloud.Config)) *ec2Cloud {
	t.Helper()
	dir := namespace.Dir(t)
	disks, err := loop.New(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disks.Close()) })
	cfg := cloud.Config{
		Zones:   []string{zone},
		Latency: 20 * time.Millisecond,
		Times:   cloud.Times{Create: 200 * time.Millisecond, Delete: 200 * time.Millisecond, Attach: 400 * time.Millisecond, Detach: 400 * time.Millisecond},
		Lag:     300 * time.Millisecond,
		Backend: disks,
	}
	if change != nil {
		change(&cfg)
	}
	c := &ec2Cloud{Cloud: cloud.New(cfg), disks: disks, dir: dir}
	t.Cleanup(func() {
		c.Close()
		require.Empty(t, c.Problems(), violation.Prefix+"of the cloud")
	})
	policy, err := os.ReadFile("../../docs/aws-policy.json")
	require.NoError(t, err)
	c.front = ec2.New(ec2.Config{Cloud: c.Cloud, Region: region, Policy: policy})
	return c
}

// data returns the volumes except root volumes.
func (c *ec2Cloud) data() (volumes []cloud.Volume) {
	for _, v := range c.Volumes() {
		if v.Tags["blockvol:name"] != "" {
			volumes = append(volumes, v)
		}
	}
	return volumes
}

// instance is an engine on an EC2 instance.
type instance struct {
	*engine.Engine
	id    string
	cloud *ec2Cloud

	t        *testing.T
	api      string // addresses in the engine's network
	metadata string
	kind     ec2.MetadataOptions
	address  string // where its plugin answers others
}

// launch returns an engine on a new instance, with the plugin and an image.
func (c *ec2Cloud) launch(t *testing.T, kind ec2.MetadataOptions, settings ...string) *instance {
	t.Helper()
	i := &instance{Engine: engine.Start(t), cloud: c, t: t, api: "127.0.0.1:0", metadata: "127.0.0.1:0", kind: kind}
	i.id = c.AddInstance(cloud.Instance{Type: "m5.large", RootDevice: "/dev/xvda", Address: c.address}).ID
	require.NoError(t, c.disks.Sysfs(i.id, filepath.Join(i.State, "sysfs")))
	i.connect()
	_, secret, token := c.front.Credentials(i.id)
	t.Cleanup(func() {
		for _, secret := range []string{secret, token} {
			assert.NotContains(t, i.Log(), secret, "no secret is logged")
		}
	})
	i.Busybox()
	i.InstallPlugin(pluginDir, append([]string{
		"PROVIDER=aws", "LOG_LEVEL=debug", "args=--sysfs=/data/state/sysfs",
		"AWS_ENDPOINT_URL_EC2=http://" + i.api, "AWS_EC2_METADATA_SERVICE_ENDPOINT=http://" + i.metadata,
	}, settings...)...)
	return i
}

// launchPeer is launch, with a plugin that answers others at the address.
func (c *ec2Cloud) launchPeer(t *testing.T, address string) *instance {
	t.Helper()
	c.address = address
	defer func() { c.address = "" }()
	i := c.launch(t, ec2.MetadataOptions{}, "CALL_TIMEOUT=5s", "PEER_LISTEN="+address+":7373", "PEER_KEY=0123456789abcdef0123456789abcdef")
	i.address = address
	return i
}

// reaches lets the plugin of the instance connect to that of another, as if they had one network.
func (i *instance) reaches(other *instance) {
	i.t.Helper()
	listener := i.Listen(other.address + ":7373")
	i.t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = in.Close() }()
				out, err := other.Dial(other.address + ":7373")
				if err != nil {
					return
				}
				defer func() { _ = out.Close() }()
				go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
				_, _ = io.Copy(out, in)
			}()
		}
	}()
}

// connect serves the API and the metadata service in the engine's network.
func (i *instance) connect() {
	i.t.Helper()
	i.api = serve(i.t, i.Engine, i.api, i.cloud.front)
	i.metadata = serve(i.t, i.Engine, i.metadata, i.cloud.front.Metadata(i.id, i.kind))
}

// serve serves a handler at an address in the engine's network.
func serve(t *testing.T, e *engine.Engine, at string, handler http.Handler) (address string) {
	t.Helper()
	listener := e.Listen(at)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(t.Output(), "", 0)}
	var serving errgroup.Group
	serving.Go(func() error { return server.Serve(listener) })
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.ErrorIs(t, serving.Wait(), http.ErrServerClosed)
	})
	return listener.Addr().String()
}

// eventuallyReleased waits until the plugin has no volume mounted and the instance has only its root volume.
func (i *instance) eventuallyReleased() {
	i.t.Helper()
	i.Eventually("the volume is unmounted and detached", func() error {
		for _, v := range i.cloud.data() {
			if len(v.Attachments) > 0 && v.Attachments[0].Instance == i.id {
				return fmt.Errorf("%s is %s", v.ID, v.Attachments[0].State)
			}
		}
		return held(i.Engine)
	})
}

func TestEBSVolumeFollowsItsContainerToAnotherInstance(t *testing.T) {
	t.Parallel()
	c := startEC2(t, nil)
	here, there := c.launchPeer(t, "127.0.0.11"), c.launchPeer(t, "127.0.0.12")
	here.reaches(there)
	there.reaches(here)
	create(here.Engine, "moving", "fstype=xfs", "size=2GiB")
	require.Len(t, c.data(), 1)
	startWriter(t, here.Engine, "moving")
	assert.Equal(t, "xfs", here.Docker("exec", "writer", "awk", `$2 == "/data" { print $3 }`, "/proc/mounts"))

	_, err := there.Try("run", "--rm", "--volume", "moving:/data", "busybox", "true")
	require.ErrorContains(t, err, "in use on node "+here.id+" by container "+here.Docker("ps", "--quiet", "--filter", "name=writer"))
	require.ErrorContains(t, err, "; stop its container on node "+here.id)
	assert.Contains(t, here.Docker("volume", "inspect", "--format", "{{json .Status}}", "moving"), `"wanted-by":"`+there.id+`"`)
	assert.Equal(t, 1, strings.Count(here.Log(), "two services may have the same volume"))
	_, err = there.Try("volume", "rm", "moving")
	require.Error(t, err, "or removed")
	awaitLines(t, here.Engine, 10)

	here.Docker("rm", "--force", "writer")
	assertNothingLost(t, there.Engine, "moving")
	there.eventuallyReleased()

	here.Docker("create", "--volume", "moving:/copyup", "busybox", "true") // the copy-up probe, after which the disk is kept
	assertNothingLost(t, there.Engine, "moving")
	assert.Equal(t, 1, strings.Count(here.Log(), "was released for another node that wants it"))
	there.eventuallyReleased()
	there.Docker("volume", "rm", "moving")
	there.Eventually("the volume is deleted and not listed", func() error {
		if left := fmt.Sprint(c.data(), here.Docker("volume", "ls", "--quiet")); left != "[]" {
			return errors.New(left)
		}
		return nil
	})
}

// rexray gives a disk its volume's name in the tag Name, and shows containers its directory data.
func TestADiskOfRexrayIsAdoptedWithItsContents(t *testing.T) {
	t.Parallel()
	c := startEC2(t, nil)
	i := c.launch(t, ec2.MetadataOptions{})
	var disk string
	_, err := c.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
		v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: 1 << 30, Type: "gp3"}, Zone: zone, Tags: map[string]string{"Name": "legacy"}})
		disk = v.ID
		return err
	})
	require.NoError(t, err)
	cloudtest.WaitFor(t, c.Cloud, disk, cloudtest.Detached)
	contents := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(contents, "data"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(contents, "data", "log"), []byte("kept"), 0o600))
	out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", "-d", contents, filepath.Join(c.dir, "disks", disk)).CombinedOutput()
	require.NoError(t, err, "%s", out)

	assert.Regexp(t, "(?m)^"+disk+" +legacy +1GiB ", operate(t, i.Engine, 0, "adopt", "--from", "rexray", "--yes"))
	assert.Equal(t, "kept", once(i.Engine, "legacy", "cat /data/log"))
	i.eventuallyReleased()
	operate(t, i.Engine, 3, "adopt", "--from", "rexray", "--yes")
	i.Docker("volume", "rm", "legacy")
	assert.Len(t, c.Volumes(), 2, "the disk is kept, beside the instance's own")
}

func TestMissingEC2RequirementsAreReported(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		kind    ec2.MetadataOptions
		setting string
		want    []string
	}{
		"another region":      {setting: "AWS_REGION=eu-west-1", want: []string{"AWS_REGION is eu-west-1", "runs in " + region, "set AWS_REGION=" + region}},
		"no metadata service": {kind: ec2.MetadataOptions{Off: true}, want: []string{"metadata service does not tell which instance this is", "endpoint enabled"}},
		"no role":             {kind: ec2.MetadataOptions{NoRole: true}, want: []string{"no AWS credentials", "give this instance a role"}},
		"a missing file of keys": {
			setting: "AWS_ACCESS_KEY_ID_FILE=/data/state/no-key", want: []string{"AWS_ACCESS_KEY_ID_FILE", "/data/state/no-key"},
		},
	} {
		if testing.Short() && test.kind != (ec2.MetadataOptions{}) {
			continue // tested in providers/aws, TestWhatIsWrongWithCredentialsIsSaid
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startEC2(t, nil)
			var settings []string
			if test.setting != "" {
				settings = append(settings, test.setting)
			}
			i := c.launch(t, test.kind, settings...)
			_, created := i.Try("volume", "create", "--driver", "blockvol", "wanted")
			_, run := i.Try("run", "--rm", "--mount", "type=volume,source=wanted,target=/data,volume-driver=blockvol", "busybox", "true")
			for _, want := range test.want {
				require.ErrorContains(t, created, want)
				require.ErrorContains(t, run, want)
			}
			assert.Empty(t, c.data())
		})
	}
}

func TestKeysInFilesAreUsedAndNotLogged(t *testing.T) {
	t.Parallel()
	c := startEC2(t, nil)
	i := c.launch(t, ec2.MetadataOptions{NoRole: true},
		"AWS_ACCESS_KEY_ID_FILE=/data/state/key", "AWS_SECRET_ACCESS_KEY_FILE=/data/state/secret", "AWS_SESSION_TOKEN_FILE=/data/state/token")
	key, secret, token := c.front.Credentials(i.id)
	for name, content := range map[string]string{"key": key, "secret": secret, "token": token} {
		require.NoError(t, os.WriteFile(filepath.Join(i.State, name), []byte(content+"\n"), 0o600))
	}
	create(i.Engine, "letters")
	once(i.Engine, "letters", "echo hello >/data/letter")
	assert.Equal(t, "hello", once(i.Engine, "letters", "cat /data/letter"))
	i.eventuallyReleased()
}

func TestPluginIsKilledDuringASlowAttach(t *testing.T) {
	t.Parallel()
	c := startEC2(t, func(cfg *cloud.Config) { cfg.Times.Attach = 3 * time.Second })
	i := c.launch(t, ec2.MetadataOptions{})
	create(i.Engine, "diary")
	pid := i.SettledPluginPID()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	run := i.Client(ctx, "run", "--rm", "--volume", "diary:/data", "busybox", "true")
	require.NoError(t, run.Start())
	i.Eventually("the attach has begun", func() error {
		if c.Calls()["AttachVolume"] == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	run.Wait() //nolint:errcheck // Docker may have retried

	i.Eventually("the volume can be mounted", func() error {
		_, err := i.Try("run", "--rm", "--volume", "diary:/data", "busybox", "true")
		return err
	})
	startWriter(t, i.Engine, "diary")
	awaitLines(t, i.Engine, 10)
	i.Docker("rm", "--force", "writer")
	assertNothingLost(t, i.Engine, "diary")
	i.eventuallyReleased()
	require.Len(t, c.data(), 1)
	assert.Equal(t, cloud.Available, c.data()[0].State)
}

func TestAttachThatNeverFinishesIsReportedAndUndone(t *testing.T) {
	t.Parallel()
	c := startEC2(t, nil)
	i := c.launch(t, ec2.MetadataOptions{})
	create(i.Engine, "stuck")
	c.Inject(cloud.Rule{Action: "AttachVolume", Fault: cloud.NeverFinish, Times: 1})
	begin := time.Now()
	_, err := i.Try("run", "--rm", "--volume", "stuck:/data", "busybox", "true")
	assert.Less(t, time.Since(begin), 30*time.Second, "Docker's shortest timeout")
	require.ErrorContains(t, err, "being attached: waiting for the device")
	require.ErrorContains(t, err, "stuck")

	i.Eventually("the attach is undone and another one succeeds", func() error {
		_, err := i.Try("run", "--rm", "--volume", "stuck:/data", "busybox", "touch", "/data/file")
		return err
	})
	assert.Equal(t, "file", once(i.Engine, "stuck", "ls /data"))
	i.eventuallyReleased()
}

// Only the serial identifies a disk, whatever EC2 says and in whatever order disks appear.
func TestDiskWithAnotherSerialIsNotUsed(t *testing.T) {
	t.Parallel()
	c := startEC2(t, nil)
	i := c.launch(t, ec2.MetadataOptions{}, "CALL_TIMEOUT=5s")
	require.NoError(t, c.disks.Sysfs(i.id, filepath.Join(t.TempDir(), "sysfs"))) // not the directory that the plugin reads
	create(i.Engine, "mistaken")
	volume := c.data()[0].ID

	var running errgroup.Group
	running.Go(func() error {
		_, err := i.Try("run", "--rm", "--volume", "mistaken:/data", "busybox", "true")
		return err
	})
	i.Eventually("the disk is attached", func() error {
		if c.disks.Device(volume) == "" {
			return errors.New("not yet")
		}
		return nil
	})
	disk := filepath.Base(c.disks.Device(volume))
	shown := filepath.Join(i.State, "sysfs", "block", disk)
	require.NoError(t, os.MkdirAll(filepath.Join(shown, "device"), 0o755))
	for _, file := range []string{"dev", "size"} {
		require.NoError(t, os.Symlink(filepath.Join("/sys/block", disk, file), filepath.Join(shown, file)))
	}
	require.NoError(t, os.Symlink("/sys/class/nvme", filepath.Join(shown, "device", "subsystem")))
	require.NoError(t, os.WriteFile(filepath.Join(shown, "device", "serial"), []byte("vol0ffffffffffffffff\n"), 0o600))

	require.ErrorContains(t, running.Wait(), "waiting for the device")
	_, err := i.Try("run", "--rm", "--volume", "mistaken:/data", "busybox", "true")
	require.ErrorContains(t, err, "waiting for the device")
	device, err := os.Open(c.disks.Device(volume))
	require.NoError(t, err)
	defer func() { _ = device.Close() }()
	content, err := io.ReadAll(io.LimitReader(device, 16<<20))
	require.NoError(t, err)
	assert.Empty(t, bytes.Trim(content, "\x00"), "nothing was written to it")
	require.NoError(t, c.disks.Detach(i.id, volume, true)) // otherwise the plugin would keep it for a while
}

func TestMountsSucceedDespiteThrottling(t *testing.T) {
	t.Parallel()
	c := startEC2(t, func(cfg *cloud.Config) {
		cfg.Limits = func(string) cloud.Bucket { return cloud.Bucket{Size: 2, PerSecond: 2} }
	})
	i := c.launch(t, ec2.MetadataOptions{})
	var group errgroup.Group
	for n := range 6 {
		volume := fmt.Sprintf("busy-%d", n)
		group.Go(func() error {
			_, err := i.Try("run", "--rm", "--mount", "type=volume,source="+volume+",target=/data,volume-driver=blockvol,volume-opt=size=1GiB", "busybox", "touch", "/data/file")
			return err
		})
	}
	require.NoError(t, group.Wait())
	assert.NotEmpty(t, c.Throttled())
	t.Logf("calls %v, throttled %v", c.Calls(), c.Throttled())
	require.Len(t, c.data(), 6)
	i.eventuallyReleased()
}

func TestVolumeOfStoppedInstanceIsTakenOver(t *testing.T) {
	t.Parallel()
	c := startEC2(t, nil)
	here, there := c.launch(t, ec2.MetadataOptions{}), c.launch(t, ec2.MetadataOptions{})
	create(here.Engine, "inherited")
	startWriter(t, here.Engine, "inherited", "--restart", "always")
	awaitLines(t, here.Engine, 10)
	written, err := lines(here.Engine)
	require.NoError(t, err)
	here.Docker("exec", "writer", "sync", "-f", "/data/log") // data that is not synced may be lost
	here.PowerOff()
	c.Stop(here.id)

	assertNothingLost(t, there.Engine, "inherited")
	found, err := strconv.Atoi(once(there.Engine, "inherited", "wc -l </data/log"))
	require.NoError(t, err)
	assert.GreaterOrEqual(t, found, written)
	there.eventuallyReleased()
	assert.Regexp(t, `Volume is taken over .*evidence=.*`+here.id+`.* is .*stopped`, there.Log())

	// The instance restarts and gets its volume back like any other.
	c.Start(here.id)
	here.Up()
	here.connect()
	here.Eventually("the container is back", func() error {
		_, err := lines(here.Engine)
		if err != nil {
			here.Try("start", "writer") //nolint:errcheck // dockerd does not retry
		}
		return err
	})
	here.Docker("rm", "--force", "writer")
	here.eventuallyReleased()
	assert.Equal(t, "1", once(there.Engine, "inherited", "head -n 1 /data/log"))
	there.eventuallyReleased()
}

func TestEBSVolumeGrowsInUseAndIsCopiedBySnapshot(t *testing.T) {
	t.Parallel()
	c := startEC2(t, nil)
	i := c.launch(t, ec2.MetadataOptions{})
	create(i.Engine, "first", "fstype=xfs", "size=1GiB", "reclaim=snapshot")
	const usable = `df -m /data | awk 'NR == 2 { print ($2 > 1500) ? "large" : "small" }'`
	i.Docker("run", "--detach", "--name", "user", "--volume", "first:/data", "busybox", "sh", "-c", "echo hello >/data/letter; exec sleep 1000")
	assert.Equal(t, "small", i.Docker("exec", "user", "sh", "-c", usable))

	first := c.data()[0]
	_, err := c.Do(t.Context(), cloud.Call{Action: "ModifyVolume"}, func(r *cloud.Request) error {
		_, err := r.ModifyVolume(first.ID, func(v cloud.Volume) (cloud.Shape, error) {
			larger := v.Shape()
			larger.Size = 2 << 30
			return larger, nil
		})
		return err
	})
	require.NoError(t, err)
	i.Eventually("the file system in use is as large as the disk", func() error {
		if is := i.Docker("exec", "user", "sh", "-c", usable); is != "large" {
			return errors.New(is)
		}
		return nil
	})
	i.Docker("rm", "--force", "user")
	i.eventuallyReleased()

	i.Docker("volume", "rm", "first")
	require.Len(t, c.Snapshots(), 1)
	i.Docker("volume", "create", "--driver", "blockvol", "--opt", "snapshot="+c.Snapshots()[0].ID, "second")
	assert.Equal(t, "hello\nlarge", once(i.Engine, "second", "cat /data/letter; "+usable))
	i.eventuallyReleased()
	require.Len(t, c.data(), 1)
	assert.NotEqual(t, first.ID, c.data()[0].ID)
}
