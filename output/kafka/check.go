package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"golang.org/x/sys/unix"
)

// Check tells whether the brokers' names resolve, which no broker has to be up for, and whether the dead-letter file
// can be written. The error says how to put things right. Other files are Validate's to read.
func (c Config) Check(ctx context.Context) error {
	c.Defaults()
	var wrong []string
	for _, b := range c.Brokers {
		host, _, err := net.SplitHostPort(b)
		if err == nil {
			timed, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
			_, err = net.DefaultResolver.LookupHost(timed, host)
			cancel()
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("broker %s: %v", b, err))
		}
	}
	if wrong != nil {
		return errors.New(strings.Join(wrong, ", ") + "; write names that resolve, or addresses")
	}
	if c.DeadLetter == "" {
		return nil
	}
	if err := writable(c.DeadLetter); err != nil {
		return fmt.Errorf("dead_letter %s: %w; make the directory if it is not there, and let user %d write to it", c.DeadLetter, err, os.Geteuid())
	}
	return nil
}

// writable tells whether path can be appended to, or made, without touching it.
func writable(path string) error {
	err := unix.Access(path, unix.W_OK)
	if errors.Is(err, os.ErrNotExist) {
		return unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK)
	}
	return err
}

// Reach asks the brokers for the topic, which it does not create, and tells when the first of the certificates that
// they show expires; the zero time if they show none. What the error says need not be lasting: a Writer tries again.
func (c Config) Reach(ctx context.Context) (expires time.Time, err error) {
	w, err := New(c, Options{})
	if err != nil {
		return expires, err
	}
	defer w.reset()
	var mu sync.Mutex // brokers are connected to from goroutines of the transport
	w.conns.verify = func(state tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		for _, cert := range state.PeerCertificates {
			if expires.IsZero() || cert.NotAfter.Before(expires) {
				expires = cert.NotAfter
			}
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.ConnectTimeout*time.Duration(len(c.Brokers)))
	defer cancel()
	_, err = w.lookup(ctx)
	mu.Lock()
	defer mu.Unlock()
	if err == nil || errors.Is(err, kafka.UnknownTopicOrPartition) && c.CreateTopic != nil {
		return expires, nil
	}
	return expires, w.fail(-1, err)
}
