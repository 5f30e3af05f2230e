package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers/sanitize"
)

const (
	// wantPath is where a node is asked for a volume.
	wantPath = "/v1/want"
	// helloPath is where nodes tell each other who is there.
	helloPath = "/v1/hello"
	// longestAnswer is how long a node waits for what it has of a volume to change before it answers nevertheless.
	longestAnswer = 10 * time.Second
	// maxQuestion bounds a question, in bytes; the names in it are short.
	maxQuestion = 16 << 10
	// maxHello is the same for a hello, which tells of many nodes.
	maxHello = 64 << 10
	// handshakeTimeout bounds the time in which a connection must have proved itself.
	handshakeTimeout = 5 * time.Second
	// Connections that have not proved themselves yet: from one address, and from all. More are closed.
	maxStrangersOfAddress, maxStrangers = 8, 256
)

// Holder is what the node has of volumes.
type Holder interface {
	// Yield lets go of the volume if nothing uses it, and returns what this node has of it, once that is not want.Known or with ctx.
	// Errors: this is not the node that is asked.
	Yield(ctx context.Context, want volume.Want) (volume.Holding, error)
}

// Server answers other nodes.
type Server struct {
	http    *http.Server
	holder  Holder
	members *Members
	log     logrus.FieldLogger

	mu        sync.Mutex
	strangers map[netip.Addr]int // connections that have not proved themselves, by address
	unproved  map[net.Conn]netip.Addr
	closed    bool
	answering sync.WaitGroup
}

// Serve begins to answer those who have one of the keys, until Close, which closes l.
func Serve(l net.Listener, keys []Key, holder Holder, members *Members, log logrus.FieldLogger) *Server {
	s := &Server{holder: holder, members: members, log: log, strangers: make(map[netip.Addr]int), unproved: make(map[net.Conn]netip.Addr)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wantPath, s.want)
	mux.HandleFunc("POST "+helloPath, s.hello)
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: handshakeTimeout, ReadTimeout: 2 * handshakeTimeout, WriteTimeout: longestAnswer + handshakeTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ConnState: s.connState, ErrorLog: stdlog.New(io.Discard, "", 0), // a stranger must not be able to fill the log
	}
	go func() {
		if err := s.http.Serve(tls.NewListener(&door{l, s}, accepting(keys))); !errors.Is(err, http.ErrServerClosed) {
			log.WithError(err).Error("Other nodes are not answered any more: their waits for volumes of this node ask the cloud")
		}
	}()
	return s
}

// Close ends all connections, and returns when the holder is not asked any more. Their nodes go on as if this one did not answer.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.http.Close()
	s.answering.Wait()
	return err
}

// begin counts an answer that is being made, unless the server is closed.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.answering.Add(1)
	}
	return !s.closed
}

func (s *Server) want(w http.ResponseWriter, r *http.Request) {
	var want volume.Want
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion))
	if err := body.Decode(&want); err != nil || want.Volume == "" || want.Disk == "" || want.From == "" || len(want.From) > maxID {
		http.Error(w, "this is no question for a volume", http.StatusBadRequest)
		return
	}
	if !s.begin() {
		http.Error(w, "this node is stopping", http.StatusServiceUnavailable)
		return
	}
	defer s.answering.Done()
	want.From = sanitize.Clip(want.From)
	if _, err := s.members.isMeant(r.Context(), want.From, want.To); err != nil {
		refuse(w, err)
		return
	}
	s.members.heard(want.From, false, from(r)) // it may be of a version that says no hello
	ctx, cancel := context.WithTimeout(r.Context(), longestAnswer)
	defer cancel()
	holding, err := s.holder.Yield(ctx, want)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(holding) // who has left asks again
}

func (s *Server) hello(w http.ResponseWriter, r *http.Request) {
	var hello Hello
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxHello)).Decode(&hello); err != nil {
		http.Error(w, "this is no hello of a node", http.StatusBadRequest)
		return
	}
	if !s.begin() {
		http.Error(w, "this node is stopping", http.StatusServiceUnavailable)
		return
	}
	defer s.answering.Done()
	answer, err := s.members.Hello(r.Context(), hello, from(r))
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// refuse tells why there is no answer. Only that another node is meant is no sign of life of that one.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	if _, is := errors.AsType[elsewhere](err); is {
		status = http.StatusMisdirectedRequest
	}
	http.Error(w, err.Error(), status)
}

// from is where a question comes from.
func from(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	return at.Addr().Unmap()
}

// door closes connections of strangers when there are too many.
type door struct {
	net.Listener
	server *Server
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := netip.AddrPort{}
		if tcp, is := conn.RemoteAddr().(*net.TCPAddr); is {
			from = tcp.AddrPort()
		}
		if known := (&guest{Conn: conn, server: d.server}); d.server.admit(known, from.Addr().Unmap()) {
			return known, nil
		}
		_ = conn.Close()
	}
}

// guest is a connection that counts as a stranger's until it has proved itself, or is closed.
type guest struct {
	net.Conn
	server *Server
}

// Close implements net.Conn.
func (g *guest) Close() error {
	g.server.proved(g)
	return g.Conn.Close()
}

func (s *Server) admit(conn net.Conn, from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.strangers[from] >= maxStrangersOfAddress || len(s.unproved) >= maxStrangers {
		return false
	}
	s.strangers[from]++
	s.unproved[conn] = from
	return true
}

func (s *Server) proved(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, is := s.unproved[conn]
	if !is {
		return
	}
	delete(s.unproved, conn)
	if s.strangers[from]--; s.strangers[from] == 0 {
		delete(s.strangers, from)
	}
}

// connState takes in that a connection has sent a request, which it can only after the handshake.
func (s *Server) connState(conn net.Conn, state http.ConnState) {
	if secure, is := conn.(*tls.Conn); is && state == http.StateActive {
		s.proved(secure.NetConn())
	}
}
