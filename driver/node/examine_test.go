package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// wrongIn returns what is wrong, as "severity code volume", and checks that each finding is complete.
func wrongIn(t *testing.T, found []providers.Finding) (wrong []string) {
	t.Helper()
	for _, f := range found {
		assert.NotEmpty(t, f.Check)
		assert.NotEmpty(t, f.Message)
		assert.Equal(t, f.Severity == providers.OK, f.Code == "", "%v", f)
		assert.Equal(t, f.Severity == providers.OK, f.Remedy == "", "%v", f)
		if f.Severity != providers.OK {
			wrong = append(wrong, strings.TrimSpace(string(f.Severity)+" "+f.Code+" "+f.Volume))
		}
	}
	return wrong
}

func TestDamagedAndOldEntriesAreFoundAndLeftAsTheyAre(t *testing.T) {
	newer := testEntry("new")
	newer.Version = journalVersion + 1
	later, err := json.Marshal(newer)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		file, content string
		want          []string
	}{
		"nothing wrong":                {"check", "can be written", nil},
		"an unfinished entry":          {"one.json.part", "{", nil},
		"a damaged entry":              {"two.json", `{"version":1,"na`, []string{"problem journal-damaged"}},
		"another's entry":              {"two.json", `{"version":0,"name":"two","volume":"v","serial":"s"}`, []string{"problem journal-damaged"}},
		"one that was set aside":       {"two.json.damaged", `{"version":1,"na`, []string{"warning journal-set-aside"}},
		"the second":                   {"two.json.damaged.2", "", []string{"warning journal-set-aside"}},
		"of a later version":           {"new.json", string(later), []string{"problem journal-newer new"}},
		"of an earlier boot":           {"old.json", `{"version":2,"boot":"earlier","name":"old","volume":"v","serial":"s","uses":[]}`, []string{"warning journal-old old"}},
		"a volume whose name looks so": {"x.json.damaged.json", `{"version":2,"boot":"boot","name":"x.json.damaged","volume":"v","serial":"s","uses":[]}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			j, err := OpenJournal(dir)
			require.NoError(t, err)
			require.NoError(t, j.Put(testEntry("one", "1")))
			require.NoError(t, os.WriteFile(filepath.Join(dir, c.file), []byte(c.content), 0o600))
			before := filesIn(t, dir)
			assert.Equal(t, c.want, wrongIn(t, j.Examine("boot")))
			assert.Equal(t, before, filesIn(t, dir))
		})
	}
}

func TestAJournalThatIsGoneIsFoundUnlessItNeverWas(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	assert.Empty(t, ExamineJournal(dir))
	j, err := OpenJournal(dir)
	require.NoError(t, err)
	require.NoError(t, j.Put(testEntry("one")))
	assert.Equal(t, []string{"warning journal-old one"}, wrongIn(t, ExamineJournal(dir)), "of another boot")
	require.NoError(t, os.RemoveAll(dir))
	assert.Equal(t, []string{"problem journal-unreadable"}, wrongIn(t, j.Examine("boot")))
}

func filesIn(t *testing.T, dir string) (files []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			content, readErr := os.ReadFile(path)
			files, err = append(files, path+": "+string(content)), readErr
		}
		return err
	}))
	slices.Sort(files)
	return files
}

func TestDirectoriesThatAreOpenMissingOrFullAreFound(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("directories of other users need root")
	}
	for name, c := range map[string]struct {
		plant func(t *testing.T, state, published string)
		want  []string
	}{
		"nothing wrong":   {func(*testing.T, string, string) {}, nil},
		"open to a group": {func(t *testing.T, state, _ string) { t.Helper(); require.NoError(t, os.Chmod(state, 0o750)) }, []string{"problem directory-open"}},
		"open to all":     {func(t *testing.T, _, published string) { t.Helper(); require.NoError(t, os.Chmod(published, 0o701)) }, []string{"problem directory-open"}},
		"somebody's":      {func(t *testing.T, state, _ string) { t.Helper(); require.NoError(t, os.Chown(state, 65534, 65534)) }, []string{"problem directory-open"}},
		"missing":         {func(t *testing.T, _, published string) { t.Helper(); require.NoError(t, os.Remove(published)) }, []string{"problem directory-missing"}},
		"a file": {func(t *testing.T, _, published string) {
			t.Helper()
			require.NoError(t, os.Remove(published))
			require.NoError(t, os.WriteFile(published, nil, 0o600))
		}, []string{"problem directory-unusable"}},
		"read-only": {func(t *testing.T, state, _ string) {
			t.Helper()
			onTmpfs(t, state, "size=128m,mode=700")
			require.NoError(t, unix.Mount("", state, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}, []string{"problem directory-read-only"}},
		"nearly full": {func(t *testing.T, state, _ string) { t.Helper(); onTmpfs(t, state, "size=32m,mode=700") }, []string{"warning state-space-low"}},
		"full": {func(t *testing.T, state, _ string) {
			t.Helper()
			onTmpfs(t, state, "size=512k,mode=700")
		}, []string{"problem state-full"}},
	} {
		t.Run(name, func(t *testing.T) {
			state, published := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "published")
			require.NoError(t, os.Mkdir(state, 0o700))
			require.NoError(t, os.Mkdir(published, 0o700))
			c.plant(t, state, published)
			assert.Equal(t, c.want, wrongIn(t, ExamineDirs(state, published)))
		})
	}
}

func onTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
}
