//go:build !linux

package p2pnode

import "syscall"

func withParent() *syscall.SysProcAttr { return nil }
