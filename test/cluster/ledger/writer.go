package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"time"
)

// Writer writes a ledger on a volume.
type Writer struct {
	Path string // of the file
	To   string // address of the collector
	Name string // ledger of the service, the same on every node
	Node string
	Task string
	Rate float64 // records per second; 0 is unlimited

	run  string
	file *File // nil until the first connection
}

// Run writes until the context ends, and then finishes the current record and returns nil. It returns an error of the file and
// reports it to the collector if connected. Without the collector it waits and writes nothing.
func (w *Writer) Run(ctx context.Context) error {
	w.run = rand.Text()
	defer func() {
		if w.file != nil {
			w.file.Close() //nolint:errcheck // each record has been synced
		}
	}()
	backoff := minBackoff
	for ctx.Err() == nil {
		greeted, err := w.session(ctx)
		if err != nil {
			return err
		}
		if greeted {
			backoff = minBackoff
		}
		sleep(ctx, backoff/2+mathrand.N(backoff))
		backoff = min(2*backoff, maxBackoff)
	}
	return nil
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

// session writes until the connection breaks. The error is the file's.
func (w *Writer) session(ctx context.Context) (greeted bool, err error) {
	dialer := net.Dialer{Timeout: patience}
	conn, err := dialer.DialContext(ctx, "tcp", w.To)
	if err != nil {
		return false, nil // Run retries
	}
	defer conn.Close() //nolint:errcheck // no data is lost
	collector := newMessageConn(conn)
	hello := message{Kind: kindHello, Name: w.Name, Node: w.Node, Task: w.Task, Run: w.run, Read: w.file != nil}
	if !tell(ctx, collector, hello) || ctx.Err() != nil {
		return false, nil
	}
	if w.file == nil {
		if w.file, err = Open(w.Path); err != nil {
			return true, w.report(ctx, collector, err)
		}
	}
	for kind := kindState; tell(ctx, collector, w.claim(kind)); kind = kindAck {
		if w.Rate > 0 {
			sleep(ctx, time.Duration(float64(time.Second)/w.Rate))
		}
		if ctx.Err() != nil {
			break
		}
		if err := w.file.Append(); err != nil {
			return true, w.report(ctx, collector, err)
		}
	}
	return true, nil
}

func (w *Writer) claim(kind string) message {
	state := w.file.State()
	return message{Kind: kind, Ledger: &state}
}

func (w *Writer) report(ctx context.Context, collector messageConn, err error) error {
	kind := kindFailed
	if errors.Is(err, ErrCorrupt) {
		kind = kindCorrupt
	}
	if !tell(ctx, collector, message{Kind: kind, Error: err.Error()}) {
		return fmt.Errorf("%w (not reported to the collector)", err)
	}
	return err
}

// tell sends a message and waits until it is noted.
func tell(ctx context.Context, collector messageConn, m message) bool {
	if collector.SetDeadline(time.Now().Add(patience)) != nil {
		return false
	}
	// After the context ends, wait for a short time only.
	defer context.AfterFunc(ctx, func() {
		collector.SetDeadline(time.Now().Add(farewell)) //nolint:errcheck // on an error the first deadline applies
	})()
	if collector.send(m) != nil {
		return false
	}
	answer, err := collector.receive()
	return err == nil && answer.Kind == kindNoted
}

const farewell = time.Second

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
