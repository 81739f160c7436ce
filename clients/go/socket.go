package p2pnode

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// Where an installed daemon listens.
const systemSocket = "/run/p2p-node/p2p-node.sock"

// SocketPath returns where the daemon's socket is looked for: the file named
// by P2P_NODE_SOCKET, else $XDG_RUNTIME_DIR/p2p-node/p2p-node.sock if that
// exists, else /run/p2p-node/p2p-node.sock.
func SocketPath() string {
	if path := os.Getenv("P2P_NODE_SOCKET"); path != "" {
		return path
	}
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); runtime != "" {
		path := filepath.Join(runtime, "p2p-node", "p2p-node.sock")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return systemSocket
}

// socket connects to the daemon. The place is looked up anew each time: a
// daemon that comes up later may be at another one.
type socket struct {
	fixed string

	mu  sync.Mutex
	err error
	// Ends with the newest connection.
	alive context.Context
}

// connection tells of its end before the next one can be made.
type connection struct {
	net.Conn
	end context.CancelFunc
}

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.end()
	}
	return n, err
}

func (c *connection) Close() error {
	c.end()
	return c.Conn.Close()
}

func (s *socket) path() string {
	if s.fixed != "" {
		return s.fixed
	}
	return SocketPath()
}

func (s *socket) dial(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", s.path())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if err != nil {
		return nil, err
	}
	alive, end := context.WithCancel(context.Background())
	s.alive = alive
	return &connection{Conn: conn, end: end}, nil
}

// connected ends with the newest connection; after a call was answered.
func (s *socket) connected() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alive
}

// forbidden tells whether the last attempt was refused by the file's mode.
func (s *socket) forbidden() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Is(s.err, fs.ErrPermission)
}
