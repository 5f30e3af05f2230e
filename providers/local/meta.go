package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// version of the descriptions on disk.
const version = 1

// meta is the description of an image on disk.
type meta struct {
	Version  int               `json:"version"`
	ID       string            `json:"id"`
	Cluster  string            `json:"cluster,omitempty"` // empty: forgotten, can be adopted
	Name     string            `json:"name,omitempty"`
	Size     int64             `json:"size"` // bytes; the image is as large, or larger after an interrupted Modify
	Created  time.Time         `json:"created"`
	Record   providers.Record  `json:"record,omitempty"`
	Tags     map[string]string `json:"tags,omitempty"`
	Snapshot string            `json:"snapshot,omitempty"` // of a volume: the snapshot it was created from
	Volume   string            `json:"volume,omitempty"`   // of a snapshot: its volume
	Of       string            `json:"of,omitempty"`       // of a snapshot: its volume's name then
	Needs    int64             `json:"needs,omitempty"`    // of a snapshot: bytes of disk that the copy may need
	Holder   *holder           `json:"holder,omitempty"`
	Formerly *former           `json:"formerly,omitempty"` // of a forgotten volume
}

type holder struct {
	Node string    `json:"node"`
	Boot string    `json:"boot"`
	At   time.Time `json:"at"`
}

type former struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
}

// decode parses a description. It refuses what this version would not write, with later if a later one may have written it.
func decode(data []byte) (*meta, error) {
	var head struct{ Version int }
	_ = json.Unmarshal(data, &head) // a later version may give any other field another type
	if head.Version > version {
		return nil, later{fmt.Errorf("format %d, where this one knows %d", head.Version, version)}
	}
	var m meta
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		if field, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown && head.Version == version {
			return nil, later{fmt.Errorf("field %s", field)}
		}
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one value")
	}
	switch {
	case m.Version != version:
		return nil, fmt.Errorf("it has format %d", m.Version)
	case m.Size <= 0:
		return nil, fmt.Errorf("its size is %d", m.Size)
	case (m.Name == "") != (m.Cluster == ""):
		return nil, errors.New("it has a name without a cluster, or a cluster without a name")
	case m.Holder != nil && (m.Holder.Node == "" || m.Holder.Boot == ""):
		return nil, errors.New("its holder is incomplete")
	}
	return &m, nil
}
