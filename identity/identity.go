// Package identity tells which machine this is: the name of its host, and the id of its installation.
//
// Both stand in records, which are compared with those of other machines. So it recognises values that do not tell machines
// apart: the name localhost, and an id that is not there yet or is all zeros.
package identity

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Host returns the host's name, as it is now.
func Host() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the host's name: %w", err)
	}
	return name, nil
}

// Unnamed reports whether name is what a host is called before it has a name of its own.
func Unnamed(name string) bool {
	first, rest, _ := strings.Cut(strings.ToLower(name), ".")
	switch first {
	case "", "(none)", "localhost":
		return true
	case "localhost4", "localhost6":
		return strings.HasPrefix(rest, "localdomain") || rest == ""
	}
	return false
}

// Machine returns the machine's id (machine-id(5)). The error says why there is none. It does not wait long for a file system
// that hangs.
func Machine() (string, error) { return etc.look() }

var etc = lookup{file: "/etc/machine-id"}

// lookWithin bounds a look at the file.
const lookWithin = time.Second

// lookup reads the file, once at a time: one that hangs keeps one goroutine, however often it is looked at.
type lookup struct {
	file string

	mu       sync.Mutex
	underWay *reading // nil: none is
}

type reading struct {
	done chan struct{}
	id   string
	err  error
}

func (l *lookup) look() (string, error) {
	l.mu.Lock()
	r := l.underWay
	if r == nil {
		r = &reading{done: make(chan struct{})}
		l.underWay = r
		go func() {
			r.id, r.err = machine(l.file)
			l.mu.Lock()
			l.underWay = nil
			l.mu.Unlock()
			close(r.done)
		}()
	}
	l.mu.Unlock()
	select {
	case <-r.done:
		return r.id, r.err
	case <-time.After(lookWithin):
		return "", fmt.Errorf("%s: no answer for %v, its file system hangs", l.file, lookWithin)
	}
}

func machine(file string) (string, error) {
	text, err := os.ReadFile(file)
	id := strings.TrimSpace(string(text))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("%s does not exist", file)
	case err != nil:
		return "", err
	case id == "":
		return "", fmt.Errorf("%s is empty", file)
	case id == "uninitialized": // between the first boot and the moment at which the id can be stored
		return "", fmt.Errorf("%s says uninitialized", file)
	case strings.Trim(id, "0") == "":
		return "", fmt.Errorf("%s has zeros alone", file)
	}
	return id, nil
}
