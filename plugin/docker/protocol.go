package docker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	protocol "github.com/docker/go-plugins-helpers/volume"
)

// maxBody is the most that a request may hold, in bytes. Engines send some hundreds.
const maxBody = 1 << 20

// request holds what any of the calls may bear.
type request struct {
	protocol.CreateRequest        // Name is borne by all that are about one volume, Options by Create only
	ID                     string // Mount, Unmount
}

var (
	// errEmptyBody: after a transport error, engines send a call again without its body. What it asked for cannot be
	// known, and whether it was done neither.
	errEmptyBody = errors.New("the connection broke and the engine sent the call again without its content, try again")
	// errBadRequest: the request came whole and makes no sense.
	errBadRequest = errors.New("blockvol does not understand the request")
)

// read takes the request from its body within the call's time. Calls that need no field take any body, for they can
// do no harm.
func (s *Server) read(w http.ResponseWriter, r *http.Request, needs fields) (request, error) {
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(s.timeout)) // a test's recorder has none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return request{}, fmt.Errorf("%w: it is larger than %d bytes", errBadRequest, maxBody)
	}
	if err != nil {
		return request{}, fmt.Errorf("the request did not arrive whole: %w", err)
	}
	_ = conn.SetReadDeadline(time.Time{}) // its end would pass for the engine's departure
	if needs == (fields{}) {
		return request{}, nil
	}
	return decode(body, needs)
}

// decode is strict where a mistake could name another volume than was meant, and lenient towards fields to come.
func decode(body []byte, needs fields) (request, error) {
	var r request
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return r, errEmptyBody
	case !utf8.Valid(body):
		// The decoder would replace what is invalid, and two names could become one.
		return r, fmt.Errorf("%w: it is not valid UTF-8", errBadRequest)
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return request{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	switch {
	case needs.name && r.Name == "":
		return r, fmt.Errorf("%w: it names no volume", errBadRequest)
	case strings.ContainsRune(r.Name, utf8.RuneError):
		return r, fmt.Errorf("%w: the volume's name %q is not valid Unicode", errBadRequest, r.Name)
	case needs.id && r.ID == "":
		return r, fmt.Errorf("%w: it bears no mount ID", errBadRequest)
	}
	return r, nil
}
