package whois

import (
	"context"
	"time"
)

// Ask answers a question for which the source was prepared.
func Ask(ctx context.Context, s Source, q *Question, now time.Time) (*Answer, error) {
	rows, hosts, err := s.Collect(ctx, q)
	if err != nil {
		return nil, err
	}
	return judge(q, rows, hosts, now), nil
}
