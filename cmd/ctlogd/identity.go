package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/identity"
	"github.com/ctlogd/ctlogd/preflight"
)

// identityEvery is how often the daemon looks who the machine is. A box that DHCP or cloud-init names is named while
// ctlogd runs already.
const identityEvery = 5 * time.Second

// machine says which keys the configuration leaves open, so that their values are the machine's.
type machine struct {
	host, observer bool  // the key is open
	noID           error // why there is no machine id
}

// identify fills in host and observer where the configuration says nothing of them, or did not when it was loaded.
func (c *Config) identify() error {
	if c.Host == "" || c.machine.host {
		name, err := identity.Host()
		if err != nil {
			return fmt.Errorf("set host in the configuration: %w", err)
		}
		c.machine.host, c.Host = true, name
	}
	if c.Observer == "" || c.machine.observer {
		c.machine.observer = true
		if c.Observer, c.machine.noID = identity.Machine(); c.machine.noID != nil {
			c.Observer = c.Host
		}
	}
	return nil
}

// keepID keeps the machine id of the running configuration where it cannot be read now: the id of a machine that has one
// does not become its host's name because there is no descriptor left, and with it every flow_id another.
func (c *Config) keepID(running *Config) {
	if c.machine.observer && c.machine.noID != nil && running.machine.observer && running.machine.noID == nil {
		c.Observer, c.machine.noID = running.Observer, nil
	}
}

// identityResults says what is doubtful about who the machine is.
func identityResults(c *Config) []preflight.Result {
	host := preflight.Result{Name: "host name", Status: preflight.Pass, Detail: c.Host}
	if identity.Unnamed(c.Host) {
		host.Status = preflight.Warn
		host.Detail = fmt.Sprintf("%q: the records do not tell this machine from others", c.Host)
		host.Remedy = "hostnamectl set-hostname NAME, or set host in the configuration; a name that is given while ctlogd runs is taken up"
	}
	id := preflight.Result{Name: "machine id", Status: preflight.Pass, Detail: "the observer is the machine id"}
	switch {
	case !c.machine.observer:
		id.Detail = "not needed: observer is " + c.Observer
	case c.machine.noID != nil:
		id.Status = preflight.Warn
		id.Detail = fmt.Sprintf("%v: the host name stands in for it, and flow ids of machines of one name look alike", c.machine.noID)
		id.Remedy = "systemd-machine-id-setup, or set observer in the configuration; and observation_domain for IPFIX"
	}
	return []preflight.Result{host, id}
}

// logIdentity logs what is doubtful about who the machine is.
func logIdentity(c *Config, log *zap.Logger) { logResults(identityResults(c), log) }

// follow answers SIGHUP, and has the records say who the machine is when that changes, until it is stopped, which waits
// for what is under way. One goroutine does both: only one configuration at a time can be taken.
func (a *app) follow(ctx context.Context, hangup <-chan os.Signal) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		logIdentity(a.cfg, a.log.Named("check"))
		look := time.NewTicker(identityEvery)
		defer look.Stop()
		for {
			select {
			case <-hangup:
				a.hangup(ctx)
			case <-look.C:
				a.identify(ctx)
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// identify takes up another name or id of the machine. The configuration's file is left alone: somebody may be editing it.
func (a *app) identify(ctx context.Context) {
	cfg := *a.cfg
	if err := cfg.identify(); err != nil {
		a.log.Error("the machine's name stays as it was", zap.Error(err))
		return
	}
	cfg.keepID(a.cfg)
	if cfg.Host == a.cfg.Host && cfg.Observer == a.cfg.Observer {
		return
	}
	a.log.Info("the machine has another name or id", zap.String("host", cfg.Host), zap.String("was", a.cfg.Host),
		zap.Bool("other_observer", cfg.Observer != a.cfg.Observer))
	if err := a.adopt(ctx, &cfg); err != nil {
		a.log.Error("the records go on with the old one", zap.Error(err))
		return
	}
	a.state.reloads.rename(cfg.Host, cfg.Observer)
	logIdentity(&cfg, a.log.Named("check"))
}
