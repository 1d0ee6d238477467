package archive

import (
	"fmt"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/unit"
)

// Tell returns what the archive takes a day, as its catalog has it; "" while that is not known.
func (c *Config) Tell(host string) string {
	n, err := archive.Forecast(c.Path, host)
	if err != nil || n.PerDay == 0 {
		return ""
	}
	return fmt.Sprintf("it has %s and takes %s a day; there is room for %d days", unit.Size(n.Held), unit.Size(n.PerDay), c.room(n)/n.PerDay)
}

// Fits returns an error if max_age cannot be kept at the rate of the last week. What cannot be told is none.
func (c *Config) Fits(host string) error {
	if c.MaxAge == 0 {
		return nil
	}
	n, err := archive.Forecast(c.Path, host)
	if err != nil || n.PerDay == 0 {
		return nil
	}
	days := c.MaxAge.Hours() / 24
	if room := c.room(n); float64(n.PerDay)*days > float64(room) {
		return fmt.Errorf("max_age of %.6g days cannot be kept: the archive takes %s a day, and there is room for %d days; "+
			"raise max_size or lower reserve where the disk has room, get a larger disk, or lower max_age",
			days, unit.Size(n.PerDay), room/n.PerDay)
	}
	return nil
}

// room is how large the archive can grow.
func (c *Config) room(n archive.Need) int64 {
	room := max(n.Held+n.Free-int64(c.Reserve), 0)
	if c.MaxSize != 0 {
		room = min(room, int64(c.MaxSize))
	}
	return room
}
