package main

import (
	"fmt"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// giveUpRights leaves the process, all of its threads, no capability but CAP_NET_ADMIN and, where it has them, those of
// others, for the case that root has started it by hand, and for those that only the socket took; under its unit it has no
// more. It comes when the netlink socket is open. What is opened later, the outputs, is opened with the permissions that
// root has as the owner of its files. It returns what is kept if there was more.
func giveUpRights(others ...cap.Value) (kept *cap.Set, err error) {
	has := cap.GetProc()
	keep := cap.NewSet()
	for _, set := range []cap.Flag{cap.Effective, cap.Permitted} {
		if ok, err := has.GetFlag(set, cap.NET_ADMIN); err != nil || !ok {
			return nil, err // nothing is given up by a process that lacks this one: it has said so, and what it needs
		}
		for _, v := range append(others, cap.NET_ADMIN) {
			if ok, err := has.GetFlag(set, v); err != nil || !ok {
				continue
			}
			if err := keep.SetFlag(set, true, v); err != nil {
				return nil, err
			}
		}
	}
	more, err := has.Cf(keep)
	if err != nil || !more.Has(cap.Permitted) {
		return nil, err
	}
	// What a program that root executes would get back. None is executed; without CAP_SETPCAP it cannot be dropped.
	if ok, _ := has.GetFlag(cap.Effective, cap.SETPCAP); ok {
		for v := range cap.MaxBits() {
			kept, _ := keep.GetFlag(cap.Permitted, v)
			if in, err := cap.GetBound(v); kept || err != nil || !in {
				continue
			}
			if err := cap.DropBound(v); err != nil {
				return nil, fmt.Errorf("drop %v from the bounding set: %w", v, err)
			}
		}
	}
	if err := cap.ResetAmbient(); err != nil {
		return nil, fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	if err := keep.SetProc(); err != nil {
		return nil, fmt.Errorf("set the capabilities to %v: %w", keep, err)
	}
	return keep, nil
}
