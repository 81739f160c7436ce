package p2pnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// quiet drops what is logged.
var quiet = slog.New(slog.DiscardHandler)

// What an error shows of the daemon's log at most.
const logTail = 4 << 10

// Daemon is a private daemon: a process with its own key, address book and
// messages, on a loopback address, for tests and first steps.
type Daemon struct {
	binary, dir string
	// The directory was made here.
	temporary bool
	args      []string
	log       io.Writer
	// Takes back what ctx's end would do.
	stopped func() bool

	mu      sync.Mutex
	process *os.Process
	ended   chan struct{}
	closed  bool
	output  *tail
}

// DaemonOption changes how [StartDaemon] starts it.
type DaemonOption func(*Daemon)

// DaemonBinary names the executable; without it, P2P_NODE_BIN, else p2p-node
// in PATH.
func DaemonBinary(path string) DaemonOption {
	return func(d *Daemon) { d.binary = path }
}

// DaemonDir names the directory of its socket, its state and its config.toml,
// and keeps that when the daemon ends; without it, a temporary one is made and
// removed.
func DaemonDir(dir string) DaemonOption {
	return func(d *Daemon) { d.dir = dir }
}

// DaemonArgs replaces the arguments of `p2p-node run`, which are a loopback
// address to listen on and --no-mdns.
func DaemonArgs(args ...string) DaemonOption {
	return func(d *Daemon) { d.args = args }
}

// DaemonLog gets the daemon's log; without it, the log is dropped.
func DaemonLog(log io.Writer) DaemonOption {
	return func(d *Daemon) { d.log = log }
}

// StartDaemon starts a private daemon and waits until it serves. It is killed
// when ctx ends, by Close, or with this process (on Linux however that ends).
func StartDaemon(ctx context.Context, options ...DaemonOption) (*Daemon, error) {
	d := &Daemon{log: io.Discard}
	for _, option := range options {
		option(d)
	}
	if err := d.prepare(); err != nil {
		return nil, err
	}
	d.stopped = context.AfterFunc(ctx, func() { d.end() })
	if err := d.start(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) prepare() error {
	if d.binary == "" {
		d.binary = os.Getenv("P2P_NODE_BIN")
	}
	if d.binary == "" {
		found, err := exec.LookPath("p2p-node")
		if err != nil {
			return fmt.Errorf("no p2p-node in PATH: install it, or name the executable in P2P_NODE_BIN: %w", err)
		}
		d.binary = found
	}
	if d.dir == "" {
		dir, err := os.MkdirTemp("", "p2p-node-")
		if err != nil {
			return err
		}
		d.dir, d.temporary = dir, true
	}
	if d.args == nil {
		// An address of its own: nobody takes the port while the daemon is
		// down.
		address := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
		if runtime.GOOS != "linux" {
			address = "127.0.0.1"
		}
		d.args = []string{"--listen", "/ip4/" + address + "/udp/0/quic-v1", "--no-mdns"}
	}
	// No settings but those in its own directory.
	config, err := os.OpenFile(filepath.Join(d.dir, "config.toml"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return config.Close()
}

// Socket of the daemon, for [WithSocket].
func (d *Daemon) Socket() string { return filepath.Join(d.dir, "sock") }

// Dial connects to the daemon.
func (d *Daemon) Dial(ctx context.Context, options ...Option) (*Node, error) {
	return Dial(ctx, append([]Option{WithSocket(d.Socket())}, options...)...)
}

// Kill ends the process as a power cut would. What it had on disk stays.
func (d *Daemon) Kill() {
	d.mu.Lock()
	process, ended := d.process, d.ended
	d.process = nil
	d.mu.Unlock()
	if process != nil {
		process.Kill()
		<-ended
	}
}

// Restart kills the process if it runs, starts it again with what it had on
// disk, and waits until it serves.
func (d *Daemon) Restart(ctx context.Context) error {
	d.Kill()
	return d.start(ctx)
}

// Close kills the process and removes its directory, unless that was given.
func (d *Daemon) Close() error {
	d.stopped()
	return d.end()
}

func (d *Daemon) end() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.Kill()
	if d.temporary {
		return os.RemoveAll(d.dir)
	}
	return nil
}

func (d *Daemon) start(ctx context.Context) error {
	if err := d.spawn(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.mu.Lock()
	ended, output := d.ended, d.output
	d.mu.Unlock()
	go func() {
		select {
		case <-ended:
			cancel(errors.New("the daemon ended"))
		case <-ctx.Done():
		}
	}()
	node, err := d.Dial(ctx, WithLogger(quiet))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s does not serve: %w\n%s", d.binary, err, output)
	}
	return node.Close()
}

// spawn starts the process.
func (d *Daemon) spawn() error {
	words := []string{"--socket", d.Socket(), "--config", filepath.Join(d.dir, "config.toml"), "run", "--state-dir", filepath.Join(d.dir, "state")}
	command := exec.Command(d.binary, append(words, d.args...)...)
	command.Env = environment()
	output := &tail{to: d.log}
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = withParent()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		// Linux kills the child when the thread ends that started it: that
		// one has to wait for the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			command.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	d.process, d.ended, d.output = command.Process, ended, output
	return nil
}

// environment is this program's, without what a daemon would read.
func environment() []string {
	var kept []string
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		switch {
		case strings.HasPrefix(name, "P2P_NODE_"), name == "STATE_DIRECTORY", name == "RUNTIME_DIRECTORY", name == "NOTIFY_SOCKET":
		default:
			kept = append(kept, variable)
		}
	}
	return kept
}

// tail passes on what is written and keeps the end of it.
type tail struct {
	to io.Writer

	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.kept = append(t.kept, p...)
	t.kept = t.kept[max(0, len(t.kept)-logTail):]
	t.mu.Unlock()
	return t.to.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.kept))
}
