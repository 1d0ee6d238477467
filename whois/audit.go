package whois

import (
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"
)

// Who asks.
type Who struct {
	UID      int
	User     string
	SudoUser string // who has become User by sudo; by what the environment says
	Host     string
}

// Asker returns who runs this process.
func Asker() Who {
	w := Who{UID: os.Getuid(), SudoUser: os.Getenv("SUDO_USER")}
	if u, err := user.LookupId(strconv.Itoa(w.UID)); err == nil {
		w.User = u.Username
	}
	w.Host, _ = os.Hostname()
	return w
}

type auditLine struct {
	Time     string       `json:"time"`
	UID      int          `json:"uid"`
	User     string       `json:"user,omitempty"`
	SudoUser string       `json:"sudo_user,omitempty"`
	Host     string       `json:"host,omitempty"`
	Case     string       `json:"case,omitempty"`
	Question jsonQuestion `json:"question"`
	Verdict  string       `json:"verdict"`
	Complete bool         `json:"complete"`
	Holders  int          `json:"holders"`
}

// Audit appends a line for each answer to a file, and brings it to the disk: before anybody has seen the answer.
func Audit(path string, who Who, answers []*Answer) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	for _, a := range answers {
		err := enc.Encode(auditLine{Time: stamp(time.Now().UnixNano()), UID: who.UID, User: who.User, SudoUser: who.SudoUser, Host: who.Host,
			Case: a.Question.Case, Question: a.Question.json(), Verdict: a.Verdict, Complete: a.Complete, Holders: len(a.Holders)})
		if err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err == nil {
		if _, err = f.WriteString(b.String()); err == nil {
			err = f.Sync()
		}
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}
	if err != nil {
		return fmt.Errorf("no answer without a line in the audit file: %w; see that you may append to it, or that the disk has room", err)
	}
	return nil
}
