package ec2

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
)

// refusal is an error response of EC2. See https://docs.aws.amazon.com/ec2/latest/devguide/errors-overview.html
type refusal struct {
	status        int
	code, message string
}

func (r *refusal) Error() string { return r.code + ": " + r.message }

// statuses are the HTTP statuses of error codes that are not 400.
var statuses = map[string]int{
	"AuthFailure":                http.StatusUnauthorized,
	"DryRunOperation":            http.StatusPreconditionFailed,
	"InternalError":              http.StatusInternalServerError,
	"InternalFailure":            http.StatusInternalServerError,
	"InvalidClientTokenId":       http.StatusForbidden,
	"MissingAuthenticationToken": http.StatusForbidden,
	"OptInRequired":              http.StatusForbidden,
	"RequestLimitExceeded":       http.StatusServiceUnavailable,
	"ServiceUnavailable":         http.StatusServiceUnavailable,
	"SignatureDoesNotMatch":      http.StatusForbidden,
	"Unavailable":                http.StatusServiceUnavailable,
	"UnauthorizedOperation":      http.StatusForbidden,
}

func refuse(code, format string, args ...any) error {
	return newRefusal(code, fmt.Sprintf(format, args...))
}

func newRefusal(code, message string) *refusal {
	status, special := statuses[code]
	if !special {
		status = http.StatusBadRequest
	}
	return &refusal{status, code, message}
}

// translate returns EC2's error response for an error.
func translate(err error) *refusal {
	if failed := new(cloud.FailedError); errors.As(err, &failed) && failed.Code != "" {
		message, ok := injected[failed.Code]
		if !ok {
			message = "The request could not be carried out."
		}
		return newRefusal(failed.Code, message)
	}
	if errors.Is(err, cloud.ErrThrottled) {
		return newRefusal("RequestLimitExceeded", "Request limit exceeded.")
	}
	if failed := new(cloud.FailedError); !errors.As(err, &failed) {
		return newRefusal("InternalError", "An internal error has occurred, of the simulation: "+err.Error())
	}
	return newRefusal("InternalError", "An internal error has occurred")
}

// injected are the messages of error codes that only a fault causes.
var injected = map[string]string{
	"AuthFailure":                           "AWS was not able to validate the provided access credentials",
	"ConcurrentTagAccess":                   "The specified tag is being modified by another request. Please retry.",
	"IncorrectState":                        "The resource is in an incorrect state for the request.",
	"InsufficientVolumeCapacity":            "There is not enough capacity to fulfill your EBS volume provision request.",
	"InternalError":                         "An internal error has occurred",
	"MaxIOPSLimitExceeded":                  "You have reached the limit on your IOPS usage for that Region.",
	"IncorrectInstanceState":                "The instance is not in a state from which it can be stopped.",
	"OperationNotPermitted":                 "The instance may not be stopped. Modify its 'disableApiStop' instance attribute and try again.",
	"UnsupportedOperation":                  "You can't stop the Amazon EC2 instance because it is associated with a one-time Spot Instance request. You can only stop Spot Instances associated with persistent Spot Instance requests.",
	"RequestLimitExceeded":                  "Request limit exceeded.",
	"ServiceUnavailable":                    "The request has failed due to a temporary failure of the server.",
	"SnapshotCreationPerVolumeRateExceeded": "The maximum per volume CreateSnapshot request rate has been exceeded. Use an increasing or variable sleep interval between requests.",
	"TagLimitExceeded":                      "The maximum number of Tags for a resource has been reached.",
	"UnauthorizedOperation":                 "You are not authorized to perform this operation.",
	"Unavailable":                           "The server is overloaded and can't handle the request.",
	"UnknownVolumeType.Unsupported":         "The specified volume type is not supported.",
	"VolumeLimitExceeded":                   "Maximum number of volumes reached. You have reached the limit of volumes for your account.",
}

func (r *refusal) encode(requestID string) []byte {
	type cause struct{ Code, Message string }
	b, err := xml.Marshal(struct {
		XMLName   xml.Name `xml:"Response"`
		Errors    []cause  `xml:"Errors>Error"`
		RequestID string
	}{Errors: []cause{{r.code, r.message}}, RequestID: requestID})
	if err != nil {
		panic(err) // impossible: it has only strings
	}
	return append([]byte(xml.Header), b...)
}
