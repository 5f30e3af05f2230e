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
//	hello      noted       identifies the writer, and says whether it has read the ledger
//	state      noted       contents of the ledger, read after the hello was noted
//	ack        noted       one more record is durable
//	...
//	failed     noted       or corrupt; the last message
//
// The writer waits for each answer. So at most one durable record is not noted, and the collector knows what had been
// acknowledged before the ledger was read.
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

	// In a hello.
	Name string `json:"name,omitempty"`
	Node string `json:"node,omitempty"`
	Task string `json:"task,omitempty"`
	Run  string `json:"run,omitempty"`  // ID of the writer process, the same for all its connections
	Read bool   `json:"read,omitempty"` // it has read the ledger

	Ledger *Summary `json:"ledger,omitempty"` // in a state and an ack

	// In failed and corrupt.
	Error string `json:"error,omitempty"`
}

const (
	maxLine  = 4096
	maxError = 1024
	patience = 5 * time.Second // timeout for a message; a cut network gives no error
)

// messageConn is a connection that carries messages.
type messageConn struct {
	net.Conn
	in *bufio.Reader
}

func newMessageConn(conn net.Conn) messageConn {
	return messageConn{conn, bufio.NewReaderSize(conn, maxLine)}
}

func (c messageConn) send(m message) error {
	if len(m.Error) > maxError {
		m.Error = m.Error[:maxError]
	}
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = c.Write(append(line, '\n'))
	return err
}

// errMessage is the error of a message that our side cannot have sent.
var errMessage = errors.New("invalid message")

func (c messageConn) receive() (m message, err error) {
	line, err := c.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return m, fmt.Errorf("%w: %d bytes without a newline", errMessage, len(line))
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: %w", errMessage, err)
	}
	return m, nil
}
