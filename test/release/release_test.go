// Package release_test checks what `make release` builds, with the tools that users have: sha256sum, minisign, dpkg.
package release_test

import (
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/manual"
)

const (
	version = "1.0-rc1"
	root    = "../.." // of the repository
)

// run runs a command in a directory and returns its output, after it has ended without an error.
func run(t *testing.T, dir, command string, args ...string) string {
	t.Helper()
	out, err := try(dir, command, args...)
	require.NoError(t, err, "%s: %s", command, out)
	return out
}

func try(dir, command string, args ...string) (output string, err error) {
	cmd := exec.Command("sh", append([]string{"-ec", command, "sh"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// prepare installs what builds releases.
func prepare(t *testing.T) {
	t.Helper()
	run(t, root, "scripts/setup release; make --no-print-directory build/bin/nfpm build/bin/cyclonedx-gomod")
}

// build builds a release of the sources in a directory, signed with a key if there is one, and returns the release's directory and what
// was printed. Short tests build for this machine only.
func build(t *testing.T, source, key string) (release, output string) {
	t.Helper()
	release = filepath.Join(t.TempDir(), "release")
	archs := "amd64 arm64"
	if testing.Short() {
		archs = runtime.GOARCH
	}
	output = run(t, source, `ARCHS="$1" VERSION="v$2" MINISIGN_KEY="$3" SOURCE_DATE_EPOCH=1790000000 scripts/release "$4"`, archs, version, key, release)
	return release, output
}

// keys makes a key pair for signatures.
func keys(t *testing.T) (secret, public string) {
	t.Helper()
	dir := t.TempDir()
	run(t, dir, "minisign -G -W -s secret -p public")
	return filepath.Join(dir, "secret"), filepath.Join(dir, "public")
}

func TestARelease(t *testing.T) {
	prepare(t)
	secret, public := keys(t)
	release, _ := build(t, root, secret)

	t.Run("is the same from another directory", func(t *testing.T) {
		if testing.Short() {
			t.Skip("it is built again, with packages that are downloaded again")
		}
		copied := t.TempDir()
		run(t, root, `
			git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory="$1"
			mkdir "$1/build"
			cp --recursive build/bin "$1/build"`, copied)
		again, output := build(t, copied, "")
		assert.Contains(t, output, "not signed")
		assert.Equal(t, "Only in "+release+": SHA256SUMS.minisig\n", run(t, root, `diff --recursive --brief "$1" "$2" || true`, release, again))
	})

	t.Run("is verified by its signature and checksums", func(t *testing.T) {
		verify := strings.Replace(strings.Join(commands(t, "minisign ", "sha256sum "), "\n"), "blockvol.pub", `"$1"`, 1)
		out := run(t, release, verify, public)
		assert.Contains(t, out, "Trusted comment: blockvol "+version)
		assert.Len(t, strings.Split(strings.TrimSpace(run(t, release, "cat SHA256SUMS")), "\n"), len(glob(t, release, "*"))-2, "all other files are in it")

		_, other := keys(t)
		_, err := try(release, verify, other)
		require.Error(t, err, "somebody else's key")
		for _, file := range glob(t, release, "*") {
			good, err := os.ReadFile(file)
			require.NoError(t, err)
			bad := append([]byte{}, good...)
			bad[len(bad)/2] ^= 1
			require.NoError(t, os.WriteFile(file, bad, 0o600))
			_, err = try(release, verify, public)
			require.Error(t, err, "a changed bit in %s", file)
			require.NoError(t, os.WriteFile(file, good, 0o600))
		}
		run(t, release, verify, public)
	})

	t.Run("lists what is in it", func(t *testing.T) {
		for _, file := range glob(t, release, "*.cdx.json") {
			arch := strings.TrimPrefix(strings.TrimSuffix(filepath.Base(file), ".cdx.json"), "blockvol-"+version+"-")
			dir := t.TempDir()
			plugin := "blockvol-" + version + "-plugin-" + arch
			run(t, dir, `tar --extract --file="$1"`, filepath.Join(release, plugin+".tar.gz"))
			run(t, dir, `tar --extract --file="$1" ./installer`, filepath.Join(release, "blockvol-"+version+"-installer-"+arch+".tar.gz"))
			assertListed(t, file, filepath.Join(dir, plugin, "rootfs"), filepath.Join(dir, "installer"), arch)
		}
	})

	t.Run("lists it in CycloneDX's format", func(t *testing.T) {
		if _, err := exec.LookPath("npm"); err != nil || testing.Short() {
			t.Skip("CycloneDX's own library is gotten by npm")
		}
		dir := t.TempDir()
		run(t, dir, `npm install --silent --no-audit --no-fund @cyclonedx/cyclonedx-library@10.3.0 ajv@8 ajv-formats@3 ajv-formats-draft2019@1`)
		run(t, "testdata", `cp validate.mjs "$1"`, dir)
		lists := glob(t, release, "*.cdx.json")
		run(t, dir, `node validate.mjs "$@"`, lists...)
		_, err := try(dir, `sed 's/"library"/"libraries"/' "$1" >wrong.json; node validate.mjs wrong.json`, lists[0])
		require.Error(t, err)
	})

	t.Run("has a plugin for an engine", func(t *testing.T) {
		e := engine.Start(t)
		name := "blockvol-" + version + "-plugin-" + runtime.GOARCH
		run(t, e.Dir, `tar --extract --file="$1"`, filepath.Join(release, name+".tar.gz"))
		grantable := e.Grantable(filepath.Join(e.Dir, name)) // a machine of tests may not have all that the plugin asks for
		run(t, e.Dir, `[ "$1" = "$2" ] || { rm -r "$2"; mv "$1" "$2"; tar --create --gzip --file="$2.tar.gz" "$2"; }; mkdir bin`, grantable, name)
		script := strings.ReplaceAll(strings.Join(commands(t, "mkdir ", "tar ", "docker plugin ", "install "), "\n"), "/usr/local/bin", "bin")
		e.Run("sh", "-ec", `mount -t tmpfs none /var/lib; mkdir /var/lib/blockvol; mount --bind "$1" /var/lib/blockvol; cd "$1"; export DOCKER_HOST="$2"; eval "$3"`,
			"sh", e.Dir, e.Host(), script)
		e.Docker("volume", "create", "--driver", "blockvol", "--opt", "size=64MiB", "data")
		assert.Equal(t, "kept", e.Docker("run", "--rm", "--volume", "data:/data", e.Busybox(), "sh", "-ec", "echo kept >/data/file; cat /data/file"))
		assert.Contains(t, run(t, e.Dir, "bin/blockvol version"), version)
	})

	t.Run("has the same program in each file", func(t *testing.T) {
		dir := t.TempDir()
		arch, sums := runtime.GOARCH, map[string]bool{}
		run(t, dir, `
			for archive in "$1"/*-"$2".tar.gz; do tar --extract --strip-components=1 --one-top-level --file="$archive"; done
			dpkg-deb --extract "$1"/blockvol_*_"$2".deb deb`, release, arch)
		for _, program := range []string{"blockvol-" + version + "-plugin-" + arch + "/rootfs/usr/bin", "blockvol-" + version + "-linux-" + arch, "deb/usr/bin"} {
			out := run(t, dir, `sha256sum <"$1/blockvol"; "$1/blockvol" version`, program)
			assert.Contains(t, out, "blockvol "+version+" (")
			sums[out] = true
		}
		assert.Len(t, sums, 1)
	})
}

// assertListed checks that a list has all modules of the program and all Debian packages in a root file system, and nothing else. The
// installer must have none that the program does not have.
func assertListed(t *testing.T, file, rootfs, installer, arch string) {
	t.Helper()
	var list struct {
		BOMFormat, SpecVersion string
		Components             []struct{ Name, Version, PURL string }
	}
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(content, &list))
	assert.Equal(t, "CycloneDX 1.6", list.BOMFormat+" "+list.SpecVersion)
	listed := map[string]string{}
	for _, c := range list.Components {
		listed[c.Name+" "+c.Version] = c.PURL
	}

	info, err := buildinfo.ReadFile(filepath.Join(rootfs, "usr/bin/blockvol"))
	require.NoError(t, err)
	require.NotEmpty(t, info.Deps)
	for _, module := range info.Deps {
		assert.Contains(t, listed[module.Path+" "+module.Version], "goarch="+arch, module.Path)
	}
	assert.Contains(t, listed, "std "+info.GoVersion)

	packages, err := os.ReadFile(filepath.Join(rootfs, "usr/share/doc/packages"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(packages)), "\n")
	require.Greater(t, len(lines), 5)
	for _, line := range lines {
		assert.Regexp(t, "^pkg:deb/debian/.*arch="+arch+"&distro=debian-12$", listed[line], line)
	}
	assert.Len(t, listed, len(info.Deps)+1+len(lines), "and nothing else")

	other, err := buildinfo.ReadFile(installer)
	require.NoError(t, err)
	require.NotEmpty(t, other.Deps)
	for _, module := range other.Deps {
		assert.Contains(t, listed, module.Path+" "+module.Version, "of the installer")
	}
}

// commands returns the lines of docs/releases.md that begin with one of these, for the release of the tests.
func commands(t *testing.T, prefixes ...string) (lines []string) {
	t.Helper()
	all, err := manual.Commands(root + "/docs/releases.md")
	require.NoError(t, err)
	for _, line := range all {
		if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(line, prefix) }) {
			lines = append(lines, strings.NewReplacer("-1.0-", "-"+version+"-", "amd64", runtime.GOARCH).Replace(line))
		}
	}
	require.GreaterOrEqual(t, len(lines), len(prefixes), "%q", lines)
	return lines
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(t, err)
	require.NotEmpty(t, files, pattern)
	return files
}
