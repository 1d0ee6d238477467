package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

var plainKey = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[\w.<-]{1,40}$`) })

// keyName is a key as it stands in a path; foreign ones are quoted, as they may hold anything.
func keyName(key string) string {
	if plainKey().MatchString(key) {
		return key
	}
	return Abridged(key)
}

// Abridged quotes the beginning of a text.
func Abridged(text string) string {
	const longest = 40
	if len(text) > longest {
		return fmt.Sprintf("%.*q...", longest, text)
	}
	return strconv.Quote(text)
}

// A Key is one key of a block, and where its value lies in the struct.
type Key struct {
	Name  string
	Index []int
}

// Keys returns the keys of a block in the order of the struct, those of inline structs in their place.
func Keys(t reflect.Type) []Key {
	var keys []Key
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			for _, in := range Keys(f.Type) {
				keys = append(keys, Key{in.Name, append([]int{i}, in.Index...)})
			}
		case f.IsExported() && name != "" && name != "-":
			keys = append(keys, Key{name, []int{i}})
		}
	}
	return keys
}

// nearest returns the name that word is most likely a slip for, "" if none is near.
func nearest(word string, names []string) string {
	word = strings.ReplaceAll(strings.ToLower(word), "-", "_")
	if len(word) > 40 {
		return ""
	}
	best, least := "", min(3, len(word)) // two slips at most, and never every letter
	for _, name := range names {
		if n := distance(word, name); n < least {
			best, least = name, n
		}
	}
	for _, name := range names {
		longer := strings.HasPrefix(word, name) || strings.HasPrefix(name, word)
		if best == "" && longer && min(len(word), len(name)) >= 3 {
			best = name // protocol for proto
		}
	}
	return best
}

// distance counts the letters to insert, remove, change or swap with their neighbour that make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			if i == 0 || j == 0 {
				rows[i][j] = i + j
				continue
			}
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
