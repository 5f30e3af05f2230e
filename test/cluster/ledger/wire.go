package ledger

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Writer and collector exchange lines of JSON. A connection is
//
//	writer     collector
//	hello      noted       who it is, and whether it has read the ledger
//	state      noted       what the ledger holds, read after the hello was noted
//	ack        noted       one more record is durable
//	...
//	failed     noted       or corrupt; the last there is
//
// The writer does nothing before it is answered. So at most one record is durable that is not noted, and the collector
// knows what had been acknowledged before the ledger was read.
const (
	kindHello   = "hello"
	kindState   = "state"
	kindAck     = "ack"
	kindFailed  = "failed"
	kindCorrupt = "corrupt"
	kindNoted   = "noted"
)

type message struct {
	Kind string `json:"kind"`

	// Of a hello.
	Name string `json:"name,omitempty"`
	Node string `json:"node,omitempty"`
	Task string `json:"task,omitempty"`
	Run  string `json:"run,omitempty"`  // one life of a writer, whatever its connections
	Read bool   `json:"read,omitempty"` // it has read the ledger already

	Ledger *Summary `json:"ledger,omitempty"` // of a state and an ack

	// Of what failed or is corrupt.
	Error string `json:"error,omitempty"`
}

const (
	maxLine  = 4096
	maxError = 1024
	patience = 5 * time.Second // with one message; a cut network says nothing
)

// wire is a connection that carries messages.
type wire struct {
	net.Conn
	in *bufio.Reader
}

func newWire(conn net.Conn) wire { return wire{conn, bufio.NewReaderSize(conn, maxLine)} }

func (w wire) send(m message) error {
	if len(m.Error) > maxError {
		m.Error = m.Error[:maxError]
	}
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// errMessage is what comes from something that is not our other side.
var errMessage = errors.New("not a message")

func (w wire) receive() (m message, err error) {
	line, err := w.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return m, fmt.Errorf("%w: %d bytes without an end", errMessage, len(line))
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: %w", errMessage, err)
	}
	return m, nil
}
