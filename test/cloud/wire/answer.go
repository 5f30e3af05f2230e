package wire

import (
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"

	"github.com/blockvol/blockvol/test/cloud"
)

// Write writes an answer, or what a fault makes of it. What breaks the connection panics with http.ErrAbortHandler, as net/http
// wants it.
func Write(w http.ResponseWriter, status int, content []byte, fault cloud.Fault) {
	switch fault {
	case cloud.LoseAnswer:
		panic(http.ErrAbortHandler)
	case cloud.CutShort:
		content = content[:len(content)/2]
	case cloud.Garbage:
		status, content = http.StatusOK, []byte("<html><body>Please sign in to the network</body></html")
	case cloud.PageNotFound:
		w.Header().Set("Content-Type", "text/html")
		status, content = http.StatusNotFound, []byte("<html><body><h1>404 Not Found</h1></body></html>")
	case cloud.RouteNotFound:
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		status, content = http.StatusNotFound, []byte(`{"message": "no Route matched with those values"}`)
	case cloud.EmptyNotFound:
		w.Header().Del("Content-Type")
		status, content = http.StatusNotFound, nil
	}
	if status != http.StatusNoContent {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	}
	w.WriteHeader(status)
	if fault == cloud.Truncate && len(content) > 1 {
		w.Write(content[:len(content)/2]) //nolint:errcheck // the connection breaks in any case
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	w.Write(content) //nolint:errcheck // a client that went away has nothing to be told
}

// MetadataAction is the action under which rules of package cloud meet requests to metadata services. The code of Fail is
// an HTTP status then.
const MetadataAction = "Metadata"

// Metadata carries a request of an instance to its metadata service. Answer is what that says, of type text/plain unless it sets
// another.
func Metadata(c *cloud.Cloud, instance string, w http.ResponseWriter, r *http.Request, answer func() (status int, body string)) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	var status int
	var body string
	fault, err := c.Do(r.Context(), cloud.Call{Action: MetadataAction, Caller: instance, Aside: true}, func(*cloud.Request) error {
		status, body = answer()
		return nil
	})
	switch {
	case err == nil:
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler)
	default:
		status, body = statusOf(err), ""
	}
	Write(w, status, []byte(body), fault)
}

// UUID writes 16 bytes as an id.
func UUID(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// statusOf is how a request is made to fail: the rule's code is an HTTP status.
func statusOf(err error) int {
	if failed := new(cloud.FailedError); errors.As(err, &failed) {
		if status, err := strconv.Atoi(failed.Code); err == nil {
			return status
		}
	}
	return http.StatusInternalServerError
}
