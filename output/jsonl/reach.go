package jsonl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// span is what the files tell of the time that they cover.
type span struct {
	back time.Duration // from the oldest record to now
	full time.Duration // how long they hold at this rate when all of them are there; 0: not known yet, or no bound
}

// span looks at the files that are there, at the time now.
func (c *Config) span(now time.Time) (s span, err error) {
	path, err := filepath.EvalSymlinks(c.Path)
	if err != nil {
		return s, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return s, err
	}
	files, err := listRotated(path)
	if err != nil {
		return s, err
	}
	oldest, last := path, info.ModTime()
	if len(files) > 0 {
		oldest = files[0].path(path)
	}
	from, err := firstTime(oldest, nil)
	if err != nil || from.IsZero() {
		return s, err
	}
	s.back = now.Sub(from)
	keep := c.Keep
	if keep == 0 {
		keep = maxKeep
	}
	switch {
	case len(files) > 0:
		if last = files[len(files)-1].info.ModTime(); last.After(from) { // what is compressed tells by its number
			s.full = last.Sub(from) / time.Duration(len(files)) * time.Duration(keep+1)
		}
	case c.MaxSize != 0 && info.Size() > 0 && last.Sub(from) > time.Minute:
		s.full = time.Duration(float64(last.Sub(from)) / float64(info.Size()) * float64(c.MaxSize) * float64(keep+1))
	}
	return s, nil
}

// Tell says how far back the files reach, and how far they will at the current rate; "" where nothing is rotated or there.
func (c *Config) Tell() string {
	if !c.rotates() || c.Path == Stdout {
		return ""
	}
	s, err := c.span(time.Now())
	if err != nil || s.back <= 0 {
		return ""
	}
	text := "reaches back " + about(s.back)
	if s.full > 0 {
		if c.MaxAge > 0 {
			s.full = min(s.full, c.MaxAge)
		}
		text += ", and holds " + about(s.full) + " at the rate until now"
	}
	return text
}

// Reach tells when the files do not reach max_age.
func (c *Config) Reach(context.Context) (expires time.Time, err error) {
	if c.MaxAge == 0 || !c.rotates() {
		return expires, nil
	}
	s, err := c.span(time.Now())
	if errors.Is(err, fs.ErrNotExist) {
		return expires, nil
	}
	if err == nil && s.full > 0 && s.full < c.MaxAge {
		err = fmt.Errorf("%s: max_size and keep hold %s at the rate until now, and max_age is %s; raise keep or max_size, or set "+
			"compress: zstd", c.Path, about(s.full), about(c.MaxAge))
	}
	return expires, err
}

// about writes a time with two digits or so.
func about(d time.Duration) string {
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}
