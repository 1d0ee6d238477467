package main

import (
	"fmt"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// giveUpRights leaves the process, all of its threads, no capability but CAP_NET_ADMIN, for the case that root has
// started it by hand; under its unit it has no other. It comes when the netlink socket is open. What is opened later, the
// outputs, is opened with the permissions that root has as the owner of its files. It reports whether there was more.
func giveUpRights() (given bool, err error) {
	has := cap.GetProc()
	keep := cap.NewSet()
	for _, set := range []cap.Flag{cap.Effective, cap.Permitted} {
		if ok, err := has.GetFlag(set, cap.NET_ADMIN); err != nil || !ok {
			return false, err // nothing is given up by a process that lacks this one: it has said so, and what it needs
		}
		if err := keep.SetFlag(set, true, cap.NET_ADMIN); err != nil {
			return false, err
		}
	}
	more, err := has.Cf(keep)
	if err != nil || !more.Has(cap.Permitted) {
		return false, err
	}
	// What a program that root executes would get back. None is executed; without CAP_SETPCAP it cannot be dropped.
	if ok, _ := has.GetFlag(cap.Effective, cap.SETPCAP); ok {
		for v := range cap.MaxBits() {
			if in, err := cap.GetBound(v); v == cap.NET_ADMIN || err != nil || !in {
				continue
			}
			if err := cap.DropBound(v); err != nil {
				return false, fmt.Errorf("drop %v from the bounding set: %w", v, err)
			}
		}
	}
	if err := cap.ResetAmbient(); err != nil {
		return false, fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	if err := keep.SetProc(); err != nil {
		return false, fmt.Errorf("set the capabilities to %v: %w", keep, err)
	}
	return true, nil
}
