package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
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
