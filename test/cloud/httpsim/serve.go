package httpsim

import (
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"

	"github.com/blockvol/blockvol/test/cloud"
)

// WriteResponse writes a response as the fault changes it. A fault that breaks the connection panics with http.ErrAbortHandler.
func WriteResponse(w http.ResponseWriter, status int, content []byte, fault cloud.Fault) {
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
		w.Write(content[:len(content)/2]) //nolint:errcheck // the connection breaks anyway
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	w.Write(content) //nolint:errcheck // the client may have gone
}

// MetadataAction is the action of a request to a metadata service in a cloud.Rule. The code of cloud.Fail is an HTTP status.
const MetadataAction = "Metadata"

// ServeMetadata answers an instance's request to its metadata service. The content type is text/plain unless answer sets another.
func ServeMetadata(c *cloud.Cloud, instance string, w http.ResponseWriter, r *http.Request, answer func() (status int, body string)) {
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
	WriteResponse(w, status, []byte(body), fault)
}

// UUID formats 16 bytes as a UUID.
func UUID(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// statusOf returns the HTTP status that a rule's code asks for.
func statusOf(err error) int {
	if failed := new(cloud.FailedError); errors.As(err, &failed) {
		if status, err := strconv.Atoi(failed.Code); err == nil {
			return status
		}
	}
	return http.StatusInternalServerError
}
