package p2pnode_test

import (
	"context"
	"errors"
	"testing"
	"time"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

// Receipts of what the peer has come through a restart of both daemons.
func TestASenderCanWaitForThePeer(t *testing.T) {
	const messages = 2000
	a, b := pair(t)
	ctx := within(t)
	sender := a.NewSender(ctx, p2pnode.UntilStored())
	var receipts []*p2pnode.Receipt
	for n := range messages {
		receipt, err := sender.Send(ctx, b.PeerID(), p2pnode.Message{Channel: "flow"})
		must(t, err)
		receipts = append(receipts, receipt)
		if n == messages/2 {
			must(t, b.Restart(ctx))
			must(t, a.Restart(ctx))
		}
	}
	must(t, sender.Close())
	for n, receipt := range receipts {
		sent, err := receipt.Wait(ctx)
		must(t, err)
		if sent.State != p2pnode.StateStored || sent.ID != receipt.ID || sent.Sequence != uint64(n+1) || sent.Duplicate {
			t.Fatalf("receipt %d: %+v", n, sent)
		}
	}
}

func TestAFullSenderWaitsForRoom(t *testing.T) {
	daemon := start(t)
	node := dial(t, daemon)
	_, err := node.AddPeer(within(t), stranger)
	must(t, err)
	ctx, cancel := context.WithCancel(within(t))
	sender := node.NewSender(ctx, p2pnode.UntilStored())
	short, end := context.WithTimeout(ctx, 500*time.Millisecond)
	defer end()
	sent := 0
	for {
		_, err := sender.Send(short, stranger, p2pnode.Message{})
		if err == nil {
			sent++
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		break
	}
	if err := sender.Flush(short); !errors.Is(err, context.DeadlineExceeded) || sent > 4096 {
		t.Fatalf("%d sent, then %v", sent, err)
	}
	cancel()
	if err := sender.Close(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// What may arrive once at most is not sent again.
func TestAnEphemeralMessageIsNotRepeated(t *testing.T) {
	daemon := start(t)
	node := dial(t, daemon)
	daemon.Kill()
	if _, err := node.Send(within(t), node.PeerID(), p2pnode.Message{}, p2pnode.Ephemeral()); !errors.Is(err, p2pnode.ErrUnavailable) {
		t.Fatal(err)
	}
}
