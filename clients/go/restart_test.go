package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

func TestTheDaemonIsDownAtTheStart(t *testing.T) {
	daemon := start(t)
	daemon.Kill()
	_, err := daemon.Dial(within(t), p2pnode.WithoutWaiting())
	if !errors.Is(err, p2pnode.ErrNoDaemon) || !strings.Contains(err.Error(), daemon.Socket()) {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	log := &logTo{}
	_, err = daemon.Dial(short, p2pnode.WithLogger(log.logger()))
	if !errors.Is(err, p2pnode.ErrNoDaemon) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if strings.Count(log.String(), "waiting for it") != 1 {
		t.Fatalf("log: %s", log)
	}
	log = &logTo{}
	dialled := make(chan error, 1)
	go func() {
		node, err := daemon.Dial(within(t), p2pnode.WithLogger(log.logger()))
		if err == nil {
			err = node.Close()
		}
		dialled <- err
	}()
	eventually(t, "a line says that it waits", func() bool { return strings.Contains(log.String(), "waiting for it") })
	must(t, daemon.Restart(within(t)))
	must(t, <-dialled)
	if !strings.Contains(log.String(), "the daemon answers") {
		t.Fatalf("log: %s", log)
	}
}

func TestAClosedNodeMissesNoDaemon(t *testing.T) {
	log := &logTo{}
	node := dial(t, start(t), p2pnode.WithLogger(log.logger()))
	must(t, node.Close())
	_, status := node.Status(within(t))
	_, send := node.Send(within(t), node.PeerID(), p2pnode.Message{})
	for _, err := range []error{status, send} {
		if !errors.Is(err, p2pnode.ErrClosed) || errors.Is(err, p2pnode.ErrNoDaemon) {
			t.Fatal(err)
		}
	}
	if log.String() != "" {
		t.Fatalf("log: %s", log)
	}
}

func TestSendWaitsForTheDaemon(t *testing.T) {
	daemon := start(t)
	log := &logTo{}
	node := dial(t, daemon, p2pnode.WithLogger(log.logger()))
	daemon.Kill()
	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	message := p2pnode.Message{Payload: []byte("x"), Time: time.UnixMilli(1)}
	sent, err := node.Send(short, node.PeerID(), message)
	if !errors.Is(err, p2pnode.ErrNoDaemon) || sent.ID == "" {
		t.Fatalf("%+v, %v", sent, err)
	}
	done := make(chan error, 1)
	go func() {
		message.ID = sent.ID
		_, err := node.Send(within(t), node.PeerID(), message)
		done <- err
	}()
	must(t, daemon.Restart(within(t)))
	must(t, <-done)
	equal(t, take(t, node, "", 1), []string{"x"})
}

// What a loop has done is done for the next one, too, though the daemon could
// not be told between them.
func TestALoopLeftWhileTheDaemonIsDown(t *testing.T) {
	daemon := start(t)
	log := &logTo{}
	node := dial(t, daemon, p2pnode.WithLogger(log.logger()))
	ctx := within(t)
	for n := range 3 {
		_, err := node.Send(ctx, node.PeerID(), p2pnode.Message{Payload: fmt.Append(nil, n)})
		must(t, err)
	}
	for delivery, err := range node.Messages(ctx, "", p2pnode.MaxBatch(3)) {
		must(t, err)
		if string(delivery.Payload) == "0" {
			daemon.Kill()
			continue
		}
		delivery.Ack()
		break
	}
	if !strings.Contains(log.String(), "could not be told") {
		t.Fatalf("log: %s", log)
	}
	must(t, daemon.Restart(ctx))
	equal(t, take(t, node, "", 1, p2pnode.Consumer("default")), []string{"2"})
}

// Both daemons are killed and started again and again while messages flow.
func TestTenThousandMessagesOverRestarts(t *testing.T) {
	const messages = 10_000
	a, b := pair(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	var taken, seen atomic.Int64
	restarted := make(chan int, 1)
	go func() {
		restarts := 0
		for step := int64(messages / 8); step < messages-messages/8; step += messages / 8 {
			for taken.Load() < step || seen.Load() < step-messages/8 {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Millisecond):
				}
			}
			for _, daemon := range []*p2pnode.Daemon{a.Daemon, b.Daemon} {
				if err := daemon.Restart(ctx); err != nil {
					t.Error(err)
				}
				restarts++
			}
		}
		restarted <- restarts
	}()
	go func() {
		sender := a.NewSender(ctx)
		for n := range messages {
			receipt, err := sender.Send(ctx, b.PeerID(), p2pnode.Message{Payload: fmt.Append(nil, n), Channel: "flow"})
			if err != nil {
				t.Errorf("message %d: %v", n, err)
				cancel()
				return
			}
			go func() {
				if _, err := receipt.Wait(ctx); err == nil {
					taken.Add(1)
				}
			}()
		}
		if err := sender.Close(); err != nil {
			t.Error(err)
		}
	}()
	next, cursor := 0, uint64(0)
	for delivery, err := range b.Messages(ctx, "flow") {
		must(t, err)
		if string(delivery.Payload) != fmt.Sprint(next) || delivery.Cursor <= cursor {
			t.Fatalf("got %q at %d, want %d after %d", delivery.Payload, delivery.Cursor, next, cursor)
		}
		cursor = delivery.Cursor
		seen.Add(1)
		if next++; next == messages {
			delivery.Ack()
			break
		}
	}
	if restarts := <-restarted; restarts < 10 {
		t.Fatalf("only %d restarts", restarts)
	}
	// Nothing is left, in the inbox or on the way.
	sent, err := a.Send(ctx, b.PeerID(), p2pnode.Message{Payload: []byte("last"), Channel: "flow"})
	must(t, err)
	if sent.State != p2pnode.StateStored {
		t.Fatalf("sent: %+v", sent)
	}
	equal(t, take(t, b.Node, "flow", 1), []string{"last"})
}

// An inbox that was replaced counts its cursors anew: its messages are not
// those that were done.
func TestAReplacedInboxIsReadFromItsBeginning(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	for n := range 5 {
		_, err := a.Send(ctx, b.PeerID(), p2pnode.Message{Payload: fmt.Append(nil, n)})
		must(t, err)
	}
	count := 0
	for delivery, err := range b.Messages(ctx, "") {
		must(t, err)
		if count++; count == 5 {
			b.Kill()
			must(t, forget(b.Daemon))
			must(t, b.Restart(ctx))
			must(t, p2pnode.Introduce(ctx, a.Node, b.Node))
			_, err := a.Send(ctx, b.PeerID(), p2pnode.Message{Payload: []byte("new")})
			must(t, err)
		}
		if count == 6 {
			if string(delivery.Payload) != "new" || delivery.Cursor > 5 {
				t.Fatalf("delivered: %+v", delivery)
			}
			break
		}
	}
}

// wipe takes all that a daemon keeps, key and store, and starts it again.
func wipe(t *testing.T, daemon *p2pnode.Daemon) {
	t.Helper()
	daemon.Kill()
	must(t, os.RemoveAll(filepath.Join(filepath.Dir(daemon.Socket()), "state")))
	must(t, daemon.Restart(within(t)))
}

// fill sends so many messages to the daemon's own inbox.
func fill(t *testing.T, node *p2pnode.Node, prefix string, count int) (payloads []string) {
	t.Helper()
	// A daemon that was wiped has another id than the Node was told.
	status, err := node.Status(within(t))
	must(t, err)
	for n := range count {
		payload := fmt.Sprint(prefix, n)
		_, err := node.Send(within(t), status.PeerId, p2pnode.Message{Payload: []byte(payload)})
		must(t, err)
		payloads = append(payloads, payload)
	}
	return payloads
}

// claim makes the daemon know the default consumer, which acknowledges nothing.
func claim(t *testing.T, daemon *p2pnode.Daemon) {
	t.Helper()
	node := dial(t, daemon)
	for _, err := range node.Messages(within(t), "") {
		must(t, err)
		break
	}
	must(t, node.Close())
}

func warned(t *testing.T, log *logTo, times int) {
	t.Helper()
	if strings.Count(log.String(), "the inbox was replaced") != times {
		t.Fatalf("log: %s", log)
	}
}

// The new inbox has more messages than were done of the old one: an old cursor
// is one of the new inbox as well.
func TestALongerInboxIsReadFromItsBeginning(t *testing.T) {
	for name, option := range map[string]p2pnode.ListenOption{"consume": p2pnode.MaxBatch(100), "peek": p2pnode.Peek()} {
		t.Run(name, func(t *testing.T) {
			daemon, log := start(t), &logTo{}
			node := dial(t, daemon, p2pnode.WithLogger(log.logger()))
			want, got := fill(t, node, "old", 5), []string(nil)
			for delivery, err := range node.Messages(within(t), "", option) {
				must(t, err)
				if got = append(got, string(delivery.Payload)); len(got) == 5 {
					wipe(t, daemon)
					want = append(want, fill(t, node, "new", 12)...)
					claim(t, daemon)
				}
				if len(got) == 17 {
					// The same inbox as before: nothing is forgotten.
					must(t, daemon.Restart(within(t)))
					want = append(want, fill(t, node, "newer", 1)...)
				}
				if len(got) == 18 {
					delivery.Ack()
					break
				}
			}
			equal(t, got, want)
			warned(t, log, 1)
		})
	}
}

// What the loop before could not tell is about the old inbox.
func TestALoopAfterTheInboxWasReplaced(t *testing.T) {
	daemon, log := start(t), &logTo{}
	node := dial(t, daemon, p2pnode.WithLogger(log.logger()))
	fill(t, node, "old", 5)
	count := 0
	for delivery, err := range node.Messages(within(t), "") {
		must(t, err)
		if count++; count == 5 {
			daemon.Kill()
			delivery.Ack()
			break
		}
	}
	wipe(t, daemon)
	want := fill(t, node, "new", 12)
	claim(t, daemon)
	equal(t, take(t, node, "", 12), want)
	warned(t, log, 1)
}

// copyAll copies a directory, modes too, to a path that is not there.
func copyAll(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-Rp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// An older copy of the store has its cursors once more, for other messages.
func TestAnInboxFromABackup(t *testing.T) {
	daemon, log := start(t), &logTo{}
	node := dial(t, daemon, p2pnode.WithLogger(log.logger()))
	state := filepath.Join(filepath.Dir(daemon.Socket()), "state")
	backup := filepath.Join(t.TempDir(), "backup")
	want, got := fill(t, node, "old", 5), []string(nil)
	equal(t, take(t, node, "", 2), want[:2])
	daemon.Kill()
	copyAll(t, state, backup)
	must(t, daemon.Restart(within(t)))
	for delivery, err := range node.Messages(within(t), "") {
		must(t, err)
		got = append(got, string(delivery.Payload))
		if len(got) == 3 {
			fill(t, node, "lost", 3)
		}
		if len(got) == 6 {
			// Known to the daemon, and then not.
			delivery.Ack()
			eventually(t, "all is acknowledged", func() bool {
				status, err := node.Status(within(t))
				must(t, err)
				return status.Inbox.Messages == 0
			})
			daemon.Kill()
			must(t, os.RemoveAll(state))
			copyAll(t, backup, state)
			must(t, daemon.Restart(within(t)))
			fill(t, node, "new", 6)
		}
		if len(got) == 15 {
			break
		}
	}
	equal(t, got[:6], []string{"old2", "old3", "old4", "lost0", "lost1", "lost2"})
	equal(t, got[6:], []string{"old2", "old3", "old4", "new0", "new1", "new2", "new3", "new4", "new5"})
	warned(t, log, 1)
}
