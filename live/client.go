package live

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// Client asks the daemon that answers on a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the daemon whose socket is at path.
func NewClient(path string) *Client {
	return &Client{path, http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DisableKeepAlives:  true, // the daemon bounds how many there are, and one that asks once a second needs none
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}}}}
}

// ErrDown marks errors that say that no daemon answers.
var ErrDown = errors.New("no ctlogd answers")

// get asks for a path of the daemon's. The answer's body is the caller's to close.
func (c *Client) get(ctx context.Context, path string, query url.Values, accept string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ctlogd"+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.why(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return nil, fmt.Errorf("%s: the daemon refuses: %s", c.path, strings.TrimSpace(string(said)))
}

// why says why there is no answer, and what to do about it.
func (c *Client) why(err error) error {
	if ctx := (*url.Error)(nil); errors.As(err, &ctx) {
		err = ctx.Err
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: the one behind %s is silent for %s", ErrDown, c.path, answerWithin)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no socket %s; start it (systemctl start ctlogd), or name its live.socket with --socket",
			ErrDown, c.path)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens on %s, so it has ended; see systemctl status ctlogd", ErrDown, c.path)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w any more: the one behind %s has ended", ErrDown, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied; become a member of the socket's group "+
			"(usermod -aG %s USER, and log in again), or use sudo", c.path, groupOf(c.path))
	}
	return fmt.Errorf("%w on %s: %w", ErrDown, c.path, err)
}

// groupOf returns the group that may use the socket, or its directory, where the socket itself cannot be seen.
func groupOf(path string) string {
	for _, p := range []string{path, filepath.Dir(path)} {
		if info, err := os.Stat(p); err == nil {
			gid := strconv.FormatUint(uint64(info.Sys().(*syscall.Stat_t).Gid), 10)
			if g, err := user.LookupGroupId(gid); err == nil {
				return g.Name
			}
			return gid
		}
	}
	return "GROUP"
}

// Tap calls show for each record that matches the words, until show returns false, ctx ends (which is no error) or the
// daemon ends. The record is show's until it returns. idle is called whenever what has come is shown.
func (c *Client) Tap(ctx context.Context, words []string, show func(*flow.Record) bool, idle func()) error {
	body, err := c.get(ctx, "/tap", url.Values{"word": words}, binaryRecords)
	if err != nil {
		return orEnded(ctx, err)
	}
	defer body.Close()
	in, batch := bufio.NewReaderSize(body, 64<<10), flow.NewBatch(1, nil)
	var head [frameHeader]byte
	var payload []byte
	for {
		if in.Buffered() == 0 {
			idle()
		}
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return orEnded(ctx, c.why(err))
		}
		n := int(binary.LittleEndian.Uint32(head[:]))
		if n > maxFrame {
			return errFrame
		}
		if cap(payload) < n {
			payload = make([]byte, n)
		}
		if _, err := io.ReadFull(in, payload[:n]); err != nil {
			return orEnded(ctx, c.why(err))
		}
		if more, err := unframe(payload[:n], batch, show); err != nil || !more {
			return err
		}
	}
}

// TapJSON is Tap with records as JSON lines, each with its newline.
func (c *Client) TapJSON(ctx context.Context, words []string, show func(line []byte) bool, idle func()) error {
	body, err := c.get(ctx, "/tap", url.Values{"word": words}, jsonRecords)
	if err != nil {
		return orEnded(ctx, err)
	}
	defer body.Close()
	in := bufio.NewReaderSize(body, 64<<10)
	for {
		if in.Buffered() == 0 {
			idle()
		}
		line, err := in.ReadSlice('\n')
		if err != nil {
			return orEnded(ctx, c.why(err))
		}
		if !show(line) {
			return nil
		}
	}
}

// orEnded is err, unless it is there because the caller has had enough.
func orEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Status returns how the daemon fares.
func (c *Client) Status(ctx context.Context) (*View, error) { return c.view(ctx, "/status") }

// Top returns that and the top talkers, and has the daemon count them for a minute.
func (c *Client) Top(ctx context.Context) (*View, error) { return c.view(ctx, "/top") }

func (c *Client) view(ctx context.Context, path string) (*View, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	body, err := c.get(ctx, path, nil, "application/json")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	v := new(View)
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return nil, fmt.Errorf("%s: read the daemon's answer: %w", c.path, err)
	}
	return v, nil
}

// answerWithin is how long a daemon may take to answer before it counts as down.
const answerWithin = 10 * time.Second
