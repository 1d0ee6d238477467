package live

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/pipeline"
)

const (
	// maxClients bounds the connections to the socket, maxTaps the taps among them: each may hold tapBatches batches.
	maxClients = 64
	maxTaps    = 16

	closeWithin = time.Second
)

// Options are what a Server shows.
type Options struct {
	Pipeline *pipeline.Pipeline
	Snapshot func() monitor.Snapshot
	Encoder  func() (format.Encoder, error) // makes the encoder of one tap's JSON lines
	Log      *zap.Logger

	// Table reads the connection tracking table.
	Table func(ctx context.Context, visit func(*flow.Record)) error

	// Talkers counts the top talkers also while nobody looks.
	Talkers bool
}

// Server shows the daemon: on its unix socket, and, by way of Handle, as a page.
type Server struct {
	o       Options
	mux     *http.ServeMux
	taps    atomic.Int32
	history history
	talkers talkers
	closers []func()
}

// NewServer returns a server that does not listen yet.
func NewServer(o Options) *Server {
	s := &Server{o: o, mux: http.NewServeMux(), history: history{snapshot: o.Snapshot},
		talkers: talkers{pipeline: o.Pipeline, table: o.Table, always: o.Talkers, log: o.Log, wake: make(chan struct{}, 1)}}
	s.mux.HandleFunc("GET /tap", s.tap)
	s.mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.history.view()) })
	s.mux.HandleFunc("GET /top", func(w http.ResponseWriter, _ *http.Request) {
		v := s.history.view()
		v.Talkers = s.talkers.look(v.Time)
		s.json(w, v)
	})
	return s
}

// Start begins to remember, and to count where it is asked for, until Close.
func (s *Server) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.history.run(ctx) })
	running.Go(func() { s.talkers.run(ctx) })
	s.closers = append(s.closers, func() {
		cancel()
		running.Wait()
	})
}

// Listen makes the socket at path and answers on it until Close.
func (s *Server) Listen(path string) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	ours, _ := os.Lstat(path)
	base, cancel := context.WithCancel(context.Background())
	server := &http.Server{Handler: s.mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: zap.NewStdLog(s.o.Log),
		BaseContext: func(net.Listener) context.Context { return base }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(netutil.LimitListener(l, maxClients)); !errors.Is(err, http.ErrServerClosed) {
			s.o.Log.Error("the live socket answers no more", zap.Error(err))
		}
	}()
	s.closers = append(s.closers, func() {
		cancel()
		within, ended := context.WithTimeout(context.Background(), closeWithin)
		defer ended()
		_ = server.Shutdown(within)
		_ = server.Close()
		<-done
		// Unless a successor has put its own there.
		if now, err := os.Lstat(path); err == nil && os.SameFile(ours, now) {
			_ = os.Remove(path)
		}
	})
	s.o.Log.Info("answering tap, top and status", zap.String("socket", path))
	return nil
}

// Close ends all that is shown, after what has come so far, unless the client does not read.
func (s *Server) Close() {
	for _, c := range slices.Backward(s.closers) {
		c()
	}
}

func (s *Server) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}
