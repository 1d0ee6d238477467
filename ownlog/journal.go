package ownlog

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/printable"
)

// priority is how a line tells the journal its priority (sd-daemon(3)).
func priority(level zapcore.Level) string {
	switch {
	case level >= zapcore.ErrorLevel:
		return "<3>"
	case level == zapcore.WarnLevel:
		return "<4>"
	case level == zapcore.InfoLevel:
		return "<6>"
	}
	return "<7>"
}

// toJournal reports whether w is the connection to the journal that systemd made: $JOURNAL_STREAM names its device and
// inode (systemd.exec(5)), as whoever was started with it may have sent its output elsewhere.
func toJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// Complain prints why a command failed, as errors for the journal where that is what stderr is. It waits a second at
// most: a process that has to end does not wait for somebody to read why.
func Complain(stderr io.Writer, text string) {
	text = printable.Lines(text)
	if toJournal(stderr) {
		text = priority(zapcore.ErrorLevel) + strings.ReplaceAll(text, "\n", "\n"+priority(zapcore.ErrorLevel))
	}
	printed := make(chan struct{})
	go func() {
		fmt.Fprintln(stderr, text)
		close(printed)
	}()
	select {
	case <-printed:
	case <-time.After(flushTime):
	}
}
