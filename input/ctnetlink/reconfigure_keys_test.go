package ctnetlink

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Every key changes by a reload, or is named as one that needs a restart.
func TestEveryKeyChangesOrIsNamed(t *testing.T) {
	var got Config
	got.Defaults()
	for i := range reflect.TypeFor[Config]().NumField() {
		key, _, _ := strings.Cut(reflect.TypeFor[Config]().Field(i).Tag.Get("yaml"), ",")
		want := got
		switch f := reflect.ValueOf(&want).Elem().Field(i); f.Interface().(type) {
		case []string:
			f.Set(reflect.ValueOf([]string{"new", "update"}))
		case string:
			f.SetString("another")
		case bool:
			f.SetBool(!f.Bool())
		case *int:
			f.Set(reflect.ValueOf(new(int(f.Elem().Int() + 1))))
		case *bool:
			f.Set(reflect.ValueOf(new(!f.Elem().Bool())))
		case time.Duration:
			f.SetInt(f.Int() + int64(time.Hour))
		default:
			f.SetInt(f.Int() + 1)
		}
		next := got.adopt(want)
		named, adopted := slices.Contains(changed(want, next), key), cmp.Equal(next, want)
		if named == adopted {
			t.Errorf("%s: taken by a reload %t, named as one that needs a restart %t", key, adopted, named)
		}
	}
}
