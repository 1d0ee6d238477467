package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/certfile"
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
// they show expires; the zero time if they show none. It tells of brokers that name addresses which do not lead to them
// from here, and of a topic that is not made for records. What the error says need not be lasting: a Writer tries again.
func (c Config) Reach(ctx context.Context) (expires time.Time, err error) {
	w, err := New(c, Options{})
	if err != nil {
		return expires, err
	}
	defer w.cluster.reset()
	var mu sync.Mutex // brokers are connected to from goroutines of the transport
	w.conns.verify = func(state tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		expires = certfile.Expiry(expires, state.PeerCertificates)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.ConnectTimeout*time.Duration(len(c.Brokers)+1))
	defer cancel()
	_, err = w.lookup(ctx)
	missing := errors.Is(err, kafka.UnknownTopicOrPartition) && c.CreateTopic != nil
	if err == nil || missing {
		err = w.reachBrokers(ctx)
	} else {
		err = w.fail(-1, err)
	}
	if err == nil && !missing {
		err = w.compacted(ctx)
	}
	mu.Lock()
	defer mu.Unlock()
	return expires, err
}

// reachBrokers tells of the brokers whose addresses, as they name them, lead nowhere from here: to those the records go.
func (w *Writer) reachBrokers(ctx context.Context) error {
	res, err := w.metadata(ctx)
	if err != nil {
		return w.fail(-1, err)
	}
	var wrong []string
	for _, b := range res.Brokers {
		address := net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
		timed, cancel := context.WithTimeout(ctx, w.cfg.ConnectTimeout)
		conn, err := w.conns.connect(timed, "tcp", address)
		cancel()
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("broker %d as %s: %v", b.NodeID, address, err))
			continue
		}
		_ = conn.Close()
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("%s: the brokers answer, but name addresses that cannot be reached from here: %s; set their "+
		"advertised.listeners to names that resolve here and lead to them", w.name, strings.Join(wrong, ", "))
}

// compacted tells when the topic keeps only the last record of each key. Who may not ask for that is told nothing.
func (w *Writer) compacted(ctx context.Context) error {
	client := kafka.Client{Addr: w.addr, Transport: w.transport}
	res, err := client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: w.cfg.Topic, ConfigNames: []string{"cleanup.policy"}}}})
	if err != nil {
		return nil
	}
	for _, r := range res.Resources {
		for _, e := range r.ConfigEntries {
			if e.ConfigName == "cleanup.policy" && strings.Contains(e.ConfigValue, "compact") {
				return fmt.Errorf("%s: the topic is compacted (cleanup.policy=%s): it keeps only the last record of each key, and "+
					"refuses gap records, which have none; set cleanup.policy=delete for it", w.name, e.ConfigValue)
			}
		}
	}
	return nil
}
