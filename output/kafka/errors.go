package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strconv"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Class sorts errors by what an operator does about them. Two of them can never be mended by another try, see
// Class.final; every other one is tried again until it succeeds.
type Class uint8

const (
	ClassConnection     Class = iota // no broker, or the connection broke
	ClassTLS                         // the handshake failed
	ClassAuthentication              // SASL: wrong mechanism, user or password
	ClassAuthorization               // the user may not write to the topic, or not see it
	ClassTopic                       // the topic does not exist
	ClassLeader                      // the partition has no leader now, or another one
	ClassReplicas                    // fewer replicas in sync than min.insync.replicas
	ClassTimeout                     // no answer in time
	ClassTooLarge                    // larger than max.message.bytes
	ClassTimestamp                   // a timestamp the topic does not accept
	ClassRecord                      // a record that the broker refuses, as a compacted topic does one without a key
	ClassOther                       // any other answer of a broker
	NumClasses
)

// ClassNames are the names of the classes, indexed by Class: the values of the metrics' label.
var ClassNames = [NumClasses]string{
	"connection", "tls", "authentication", "authorization", "topic", "leader", "replicas", "timeout", "too_large",
	"timestamp", "record", "other",
}

func (c Class) String() string { return ClassNames[c] }

// final reports whether a single record that fails so can never be delivered.
func (c Class) final() bool { return c == ClassTooLarge || c == ClassRecord }

// remedies say what to do, where the error does not.
var remedies = [NumClasses]string{
	ClassTLS:            "; check tls.ca, tls.cert, tls.server_name and that the port speaks TLS",
	ClassAuthentication: "; check sasl.mechanism, sasl.username and the password",
	ClassAuthorization:  "; grant the user Write and Describe on the topic",
	ClassTopic:          "; create the topic, or set create_topic",
}

// Error is why records could not be delivered now.
type Error struct {
	Output    string // Writer.Name
	Partition int    // -1 if it concerns no single one
	Class     Class
	Err       error

	creates bool // create_topic is set, so the error is not for want of it
}

func (e *Error) Error() string {
	where := e.Output
	if e.Partition >= 0 {
		where += " partition " + strconv.Itoa(e.Partition)
	}
	remedy := remedies[e.Class]
	if e.Class == ClassTopic && e.creates {
		remedy = "; it is created when the brokers let us: see that the user may (Create)"
	}
	return where + ": " + e.Err.Error() + remedy
}

func (e *Error) Unwrap() error { return e.Err }

// advertised returns what to do about an error of an address that the brokers have told and that is not one of brokers;
// "" if it is none.
func (w *Writer) advertised(err error) string {
	var lookup *net.DNSError
	if !errors.As(err, &lookup) {
		return ""
	}
	for _, b := range w.cfg.Brokers {
		if host, _, err := net.SplitHostPort(b); err == nil && host == lookup.Name {
			return ""
		}
	}
	return "the brokers name it: set their advertised.listeners to names that resolve here, or have this name resolve"
}

// rejected says that the n records after those delivered can never be delivered. It is what package pipeline asks for
// by its method, as an output does not import it.
type rejected struct {
	n   int
	err error
}

func (e *rejected) Error() string {
	return "refused for good: " + e.err.Error()
}
func (e *rejected) Unwrap() error { return e.err }

// Rejected returns the number of records.
func (e *rejected) Rejected() int { return e.n }

// brokerClasses are the classes of the brokers' error codes; any other code is ClassOther.
var brokerClasses = map[kafka.Error]Class{
	kafka.SASLAuthenticationFailed:     ClassAuthentication,
	kafka.UnsupportedSASLMechanism:     ClassAuthentication,
	kafka.IllegalSASLState:             ClassAuthentication,
	kafka.TopicAuthorizationFailed:     ClassAuthorization,
	kafka.ClusterAuthorizationFailed:   ClassAuthorization,
	kafka.UnknownTopicOrPartition:      ClassTopic,
	kafka.InvalidTopic:                 ClassTopic,
	kafka.LeaderNotAvailable:           ClassLeader,
	kafka.NotLeaderForPartition:        ClassLeader,
	kafka.FencedLeaderEpoch:            ClassLeader,
	kafka.UnknownLeaderEpoch:           ClassLeader,
	kafka.KafkaStorageError:            ClassLeader,
	kafka.NotEnoughReplicas:            ClassReplicas,
	kafka.NotEnoughReplicasAfterAppend: ClassReplicas,
	kafka.RequestTimedOut:              ClassTimeout,
	kafka.MessageSizeTooLarge:          ClassTooLarge,
	kafka.RecordListTooLarge:           ClassTooLarge,
	kafka.InvalidTimestamp:             ClassTimestamp,
	kafka.InvalidRecord:                ClassRecord,
	kafka.NetworkException:             ClassConnection,
	kafka.BrokerNotAvailable:           ClassConnection,
}

// classify returns the class of an error of kafka-go: a broker's code, an error of its own, or the network's.
func classify(err error) Class {
	var (
		code   kafka.Error
		verify *tls.CertificateVerificationError
		header tls.RecordHeaderError
		op     *net.OpError
	)
	switch {
	case errors.As(err, &code):
		if c, ok := brokerClasses[code]; ok {
			return c
		}
		return ClassOther
	case errors.Is(err, protocol.ErrNoTopic):
		return ClassTopic
	case errors.Is(err, protocol.ErrNoPartition), errors.Is(err, protocol.ErrNoLeader):
		return ClassLeader
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return ClassTimeout
	case errors.As(err, &verify), errors.As(err, &header),
		errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"): // a TLS alert, see crypto/tls
		return ClassTLS
	}
	return ClassConnection
}
