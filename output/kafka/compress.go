package kafka

import (
	"github.com/klauspost/compress/zstd"
	kafka "github.com/segmentio/kafka-go"
)

// Compressions are the names of the codecs, indexed by their number in a record batch's attributes.
var Compressions = [...]string{"none", "gzip", "snappy", "lz4", "zstd"}

// A codec appends src, compressed, to dst. It is for one goroutine.
type codec func(dst, src []byte) []byte

// newCodec returns the codec of a number in Compressions.
func newCodec(number int) codec {
	switch kafka.Compression(number) {
	case kafka.Lz4:
		return new(lz4Encoder).append
	case kafka.Zstd:
		// The options are constants, for which there is no error. The batch has a CRC of its own.
		e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false))
		return func(dst, src []byte) []byte { return e.EncodeAll(src, dst) }
	case kafka.Gzip, kafka.Snappy:
		c := kafka.Compression(number).Codec()
		return func(dst, src []byte) []byte {
			b := appender(dst)
			w := c.NewWriter(&b) // pooled by the codec
			_, _ = w.Write(src)  // an appender does not fail
			_ = w.Close()
			return b
		}
	}
	return func(dst, src []byte) []byte { return append(dst, src...) }
}

// appender is a slice to write to.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}
