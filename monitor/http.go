//go:build !small

package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/exporter-toolkit/web"
	"go.uber.org/zap"
)

const (
	// What a client that is slow, or means ill, can cost.
	maxConns       = 64
	maxHeader      = 16 << 10
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	answerTimeout  = 30 * time.Second
	idleTimeout    = 15 * time.Second
	maxScrapes     = 4

	firstRetry = time.Second
	lastRetry  = 30 * time.Second

	endWithin = time.Second

	serverName = "ctlogd"
)

// NewMux returns what is served: /metrics, /healthz and /readyz. The caller may add to it.
func NewMux(source func() Snapshot) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(NewRegistry(source), promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s := source()
		answer(w, s.alive(), &s)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := source()
		answer(w, s.State != StateDown, &s)
	})
	return mux
}

// answer says yes or no by its status, and how the daemon fares in its text: the state, and a line for each reason.
func answer(w http.ResponseWriter, yes bool, s *Snapshot) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Server", serverName) // by which the check knows that a port in use is in use by us
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !yes {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, s.State)
	for _, reason := range s.Reasons {
		fmt.Fprintln(w, strings.ToValidUTF8(reason, "\uFFFD"))
	}
}

// NewHTTPServer returns a server for h with bounds for what clients can cost it.
func NewHTTPServer(h http.Handler, log *zap.Logger) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout,
		WriteTimeout: answerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: zap.NewStdLog(log)}
}

// Server serves a handler where the configuration says, which may change. That it cannot, because the address is taken
// or not there yet, stops nothing: it says so and tries again.
type Server struct {
	handler http.Handler
	log     *zap.Logger

	mu     sync.Mutex
	config Config
	stop   func() // nil: nothing runs
}

// NewServer returns a server of h that serves nothing yet. log may be nil.
func NewServer(h http.Handler, log *zap.Logger) *Server {
	if log == nil {
		log = zap.NewNop()
	}
	return &Server{handler: h, log: log}
}

// Configure has the server serve as c says from now on. It does not wait for the address.
func (s *Server) Configure(c Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		if c == s.config && c.WebConfig == "" { // the file may have come to ask for TLS, or not to
			return
		}
		s.stop()
		s.stop = nil
	}
	s.config = c
	if c.Listen == "" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run(ctx, c)
	}()
	s.stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(2 * endWithin): // it reads web_config, whose file system hangs
			s.log.Error("the metrics' listener does not end, and is left as it is", zap.String("listen", c.Listen))
		}
	}
}

// Close ends serving; requests under way get a second.
func (s *Server) Close() { s.Configure(Config{}) }

// run serves until ctx ends.
func (s *Server) run(ctx context.Context, c Config) {
	retry, said := firstRetry, ""
	for {
		began := time.Now()
		err := s.serve(ctx, c)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastRetry {
			retry, said = firstRetry, ""
		}
		if err.Error() != said { // told once, until it is another
			said = err.Error()
			s.log.Error("cannot serve metrics; flows are logged all the same, and it is tried again",
				zap.String("listen", c.Listen), zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
}

// serve listens and serves until ctx ends or something fails.
func (s *Server) serve(ctx context.Context, c Config) error {
	if err := web.Validate(c.WebConfig); err != nil {
		return fmt.Errorf("metrics.web_config: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return err
	}
	defer l.Close()
	server, room := NewHTTPServer(s.handler, s.log), newRoom(l, maxConns)
	server.ConnState = room.state
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		within, cancel := context.WithTimeout(context.Background(), endWithin)
		defer cancel()
		if server.Shutdown(within) != nil {
			_ = server.Close()
		}
	})
	s.log.Info("serving metrics", zap.Stringer("listen", l.Addr()), zap.String("web_config", c.WebConfig))
	err = web.Serve(room, server, &web.FlagConfig{WebConfigFile: &c.WebConfig},
		slog.New(slogHandler{s.log}))
	if !stop() { // ctx has ended
		<-ended
		return ctx.Err()
	}
	_ = server.Close()
	return err
}

// slogHandler passes the warnings of a library to zap.
type slogHandler struct{ log *zap.Logger }

func (slogHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

func (h slogHandler) Handle(_ context.Context, r slog.Record) error {
	fields := make([]zap.Field, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		fields = append(fields, zap.Any(a.Key, a.Value.Any()))
		return true
	})
	h.log.Warn(r.Message, fields...)
	return nil
}

func (h slogHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h slogHandler) WithGroup(string) slog.Handler      { return h }
