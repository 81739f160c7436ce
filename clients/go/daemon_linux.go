package p2pnode

import "syscall"

// withParent makes the daemon end with this process, however that ends.
func withParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
