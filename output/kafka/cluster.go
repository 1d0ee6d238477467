package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"go.uber.org/zap"
)

// cluster is the brokers and the topic, as they are asked for. It is for one goroutine.
type cluster struct {
	topic     string
	create    *CreateTopic // how to create it; nil: not at all
	log       *zap.Logger
	addr      net.Addr
	transport *kafka.Transport
	conns     connections

	created time.Time // when the topic was created by us
	used    time.Time // when a broker answered last
}

// idleFor is how long no broker must have been asked for a connection to count as idle: brokers and what is on the way to
// them close idle ones.
const idleFor = time.Second

// settleFor is how long a new topic may be unknown to some brokers, or have no leaders.
const settleFor = 30 * time.Second

// idle reports whether connections that are open may have been closed by the other side meanwhile.
func (c *cluster) idle() bool { return !c.used.IsZero() && time.Since(c.used) >= idleFor }

// young reports whether the topic is so new that the brokers need not know it.
func (c *cluster) young() bool { return time.Since(c.created) < settleFor }

// reset drops every connection and what was learnt over them, so that no request is left under way and the next one
// starts with the cluster as it is by then.
func (c *cluster) reset() {
	c.transport.CloseIdleConnections()
	c.conns.closeAll()
}

// partitions returns the topic's partitions, and creates the topic if it is missing and that is wanted.
func (c *cluster) partitions(ctx context.Context) ([]metadata.ResponsePartition, error) {
	topic, err := c.lookup(ctx)
	if errors.Is(err, kafka.UnknownTopicOrPartition) && c.create != nil && !c.young() {
		if err = c.createTopic(ctx); err == nil {
			topic, err = c.lookup(ctx)
		}
	}
	if errors.Is(err, io.EOF) && c.conns.tls != nil {
		err = fmt.Errorf("the broker closed the connection (%w); does the port speak TLS?", err)
	}
	if err != nil {
		return nil, err
	}
	return topic.Partitions, nil
}

// lookup asks for the topic. It costs a request only after a reset; else the transport answers.
func (c *cluster) lookup(ctx context.Context) (*metadata.ResponseTopic, error) {
	res, err := c.metadata(ctx)
	if err != nil {
		return nil, err
	}
	if len(res.Topics) == 0 {
		return nil, kafka.UnknownTopicOrPartition
	}
	topic := &res.Topics[0]
	switch {
	case topic.ErrorCode != 0:
		return nil, kafka.Error(topic.ErrorCode)
	case len(topic.Partitions) == 0:
		return nil, kafka.LeaderNotAvailable
	}
	return topic, nil
}

func (c *cluster) metadata(ctx context.Context) (*metadata.Response, error) {
	res, err := c.transport.RoundTrip(ctx, c.addr, &metadata.Request{TopicNames: []string{c.topic}})
	if err != nil {
		return nil, err
	}
	return res.(*metadata.Response), nil
}

func (c *cluster) createTopic(ctx context.Context) error {
	client := kafka.Client{Addr: c.addr, Transport: c.transport}
	res, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic:             c.topic,
		NumPartitions:     c.create.Partitions,
		ReplicationFactor: c.create.Replication,
	}}})
	if err == nil {
		err = res.Errors[c.topic]
	}
	switch {
	case errors.Is(err, kafka.TopicAlreadyExists):
		c.created = time.Now()
		c.reset() // to see it
		return nil
	case err != nil:
		return fmt.Errorf("create topic: %w", err)
	}
	c.created = time.Now()
	c.log.Info("created topic", zap.Int("partitions", c.create.Partitions), zap.Int("replication", c.create.Replication))
	return nil
}
