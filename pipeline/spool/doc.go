// Package spool is an output's queue on disk.
package spool
