package aws

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"

	"github.com/blockvol/blockvol/providers"
)

// fileKeys are static keys, at least one of them in a file. They are read again after keysLife, so that a key can be replaced
// without a restart.
type fileKeys struct{ getenv func(string) string }

const keysLife = 5 * time.Minute

// keysFromFiles returns nil if no setting names a file: the SDK itself reads keys in the environment.
func keysFromFiles(getenv func(string) string) (sdk.CredentialsProvider, error) {
	inFile := false
	for _, name := range []string{keyIDSetting, secretSetting, tokenSetting} {
		file := getenv(name + providers.FileSuffix)
		inFile = inFile || file != ""
		if file != "" && getenv(name) != "" {
			return nil, fmt.Errorf("%w: both %s and %s are set: leave one of them out", providers.ErrInvalid, name, name+providers.FileSuffix)
		}
	}
	switch {
	case inFile:
		return sdk.NewCredentialsCache(fileKeys{getenv}), nil
	case (getenv(keyIDSetting) == "") != (getenv(secretSetting) == ""):
		return nil, fmt.Errorf("%w: only one of %s and %s is set, and both are needed: set the other, or leave both out", providers.ErrInvalid, keyIDSetting, secretSetting)
	}
	return nil, nil //nolint:nilnil // none is a valid answer
}

// Retrieve reads the keys.
func (k fileKeys) Retrieve(context.Context) (sdk.Credentials, error) {
	keys := sdk.Credentials{CanExpire: true, Expires: time.Now().Add(keysLife), Source: "files"}
	var errs [3]error
	keys.AccessKeyID, errs[0] = k.read(keyIDSetting)
	keys.SecretAccessKey, errs[1] = k.read(secretSetting)
	keys.SessionToken, errs[2] = k.read(tokenSetting)
	if err := errors.Join(errs[:]...); err != nil {
		return sdk.Credentials{}, err
	}
	if keys.AccessKeyID == "" || keys.SecretAccessKey == "" {
		return sdk.Credentials{}, fmt.Errorf("%s and %s are both needed, as values or as %s", keyIDSetting, secretSetting, providers.FileSuffix)
	}
	return keys, nil
}

func (k fileKeys) read(name string) (string, error) {
	file := k.getenv(name + providers.FileSuffix)
	if file == "" {
		return k.getenv(name), nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s cannot be read: %w: the file must be readable where blockvol runs; the plugin sees the host's state directory as /data/state", name+providers.FileSuffix, err)
	}
	return strings.TrimSpace(string(content)), nil
}
