package live

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"

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
	Encoder  func() (format.Encoder, error) // makes the encoder of one tap's JSON lines
	Log      *zap.Logger
}

// Server answers on the daemon's unix socket.
type Server struct {
	o    Options
	mux  *http.ServeMux
	taps atomic.Int32
	http *http.Server
	stop func()
	done chan struct{}
}

// NewServer returns a server that does not listen yet.
func NewServer(o Options) *Server {
	s := &Server{o: o, mux: http.NewServeMux(), done: make(chan struct{}), stop: func() {}}
	s.mux.HandleFunc("GET /tap", s.tap)
	return s
}

// Listen makes the socket at path and answers on it until Close.
func (s *Server) Listen(path string) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	ours, _ := os.Lstat(path)
	base, cancel := context.WithCancel(context.Background())
	s.http = &http.Server{Handler: s.mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: zap.NewStdLog(s.o.Log),
		BaseContext: func(net.Listener) context.Context { return base }}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(netutil.LimitListener(l, maxClients)); !errors.Is(err, http.ErrServerClosed) {
			s.o.Log.Error("the live socket answers no more", zap.Error(err))
		}
	}()
	s.stop = func() {
		cancel()
		within, ended := context.WithTimeout(context.Background(), closeWithin)
		defer ended()
		_ = s.http.Shutdown(within)
		_ = s.http.Close()
		<-s.done
		// Unless a successor has put its own there.
		if now, err := os.Lstat(path); err == nil && os.SameFile(ours, now) {
			_ = os.Remove(path)
		}
	}
	s.o.Log.Info("answering tap, top and status", zap.String("socket", path))
	return nil
}

// Close ends all that is shown, after what has come so far, unless the client does not read.
func (s *Server) Close() { s.stop() }
