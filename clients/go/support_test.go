package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

// Longest that a test may take: one that hangs must end.
const deadline = 3 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv("P2P_NODE_BIN") == "" {
		_, file, _, _ := runtime.Caller(0)
		binary := filepath.Join(filepath.Dir(file), "../../target/debug/p2p-node")
		os.Setenv("P2P_NODE_BIN", binary)
	}
	if _, err := os.Stat(os.Getenv("P2P_NODE_BIN")); err != nil {
		fmt.Fprintln(os.Stderr, "the tests need the daemon: build it, or name it in P2P_NODE_BIN:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// logTo collects a log to look into.
type logTo struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logTo) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logTo) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logTo) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func start(t *testing.T) *p2pnode.Daemon {
	t.Helper()
	return startWith(t, "")
}

// startWith starts a daemon with settings in TOML.
func startWith(t *testing.T, config string) *p2pnode.Daemon {
	t.Helper()
	log, dir := &logTo{}, t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600))
	daemon, err := p2pnode.StartDaemon(within(t), p2pnode.DaemonLog(log), p2pnode.DaemonDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the daemon at %s:\n%s", daemon.Socket(), log)
		}
		daemon.Close()
	})
	return daemon
}

func dial(t *testing.T, daemon *p2pnode.Daemon, options ...p2pnode.Option) *p2pnode.Node {
	t.Helper()
	node, err := daemon.Dial(within(t), append([]p2pnode.Option{p2pnode.WithLogger((&logTo{}).logger())}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	return node
}

// side is a daemon with a node that talks to it.
type side struct {
	*p2pnode.Daemon
	*p2pnode.Node
}

// pair is two that trust each other.
func pair(t *testing.T) (a, b side) {
	t.Helper()
	a.Daemon, b.Daemon = start(t), start(t)
	a.Node, b.Node = dial(t, a.Daemon), dial(t, b.Daemon)
	must(t, p2pnode.Introduce(within(t), a.Node, b.Node))
	return a, b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lacks skips a test that the daemon cannot take part in, loudly.
func lacks(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, p2pnode.ErrUnimplemented) {
		skip(t, "the daemon lacks what this test needs: "+err.Error())
	}
}

func skip(t *testing.T, why string) {
	t.Helper()
	if file := os.Getenv("TEST_SKIPS"); file != "" {
		if out, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
			fmt.Fprintf(out, "go %s: %s\n", t.Name(), why)
			out.Close()
		}
	}
	t.Skip(why)
}

// eventually looks until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for tick := time.NewTicker(20 * time.Millisecond); !holds(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
