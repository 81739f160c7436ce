package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

// take reads so many payloads from a channel and acknowledges them.
func take(t *testing.T, node *p2pnode.Node, channel string, count int, options ...p2pnode.ListenOption) []string {
	t.Helper()
	var got []string
	for delivery, err := range node.Messages(within(t), channel, options...) {
		must(t, err)
		got = append(got, string(delivery.Payload))
		if len(got) == count {
			delivery.Ack()
			break
		}
	}
	return got
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestMessagesBothWays(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	made := time.UnixMilli(1_700_000_000_123)
	sent, err := a.Send(ctx, b.PeerID(), p2pnode.Message{
		Type: "reading", Payload: []byte("20.5"), Time: made, Metadata: map[string]string{"unit": "C"},
		Channel: "readings", ReplyTo: "earlier",
	})
	must(t, err)
	if sent.State != p2pnode.StateStored || sent.ID == "" || sent.Sequence != 1 || sent.Duplicate {
		t.Fatalf("sent: %+v", sent)
	}
	for delivery, err := range b.Messages(ctx, "readings") {
		must(t, err)
		m := delivery.Message
		if m.ID != sent.ID || m.Type != "reading" || string(m.Payload) != "20.5" || !m.Time.Equal(made) ||
			m.Metadata["unit"] != "C" || m.Channel != "readings" || m.ReplyTo != "earlier" || m.From != a.PeerID() ||
			m.To != b.PeerID() || m.Sequence != 1 || m.Route != p2pnode.RouteLAN || delivery.Attempt != 1 ||
			time.Since(m.ReceivedAt) > deadline {
			t.Fatalf("delivered: %+v", delivery)
		}
		delivery.Ack()
		break
	}
	_, err = b.SendJSON(ctx, a.PeerID(), "", map[string]int{"answer": 42})
	must(t, err)
	for delivery, err := range a.Messages(ctx, "") {
		must(t, err)
		var body struct{ Answer int }
		must(t, delivery.DecodeJSON(&body))
		if body.Answer != 42 || delivery.Metadata["content-type"] != "application/json" || delivery.DecodeJSON(new([]int)) == nil {
			t.Fatalf("delivered: %+v", delivery)
		}
		break
	}
	found, err := a.GetMessage(ctx, sent.ID)
	must(t, err)
	if found.State != p2pnode.StateStored || found.Peer != b.PeerID() {
		t.Fatalf("found: %v", found)
	}
}

func TestASecondSendIsADuplicate(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	message := p2pnode.Message{ID: "one", Payload: []byte("x"), Time: time.UnixMilli(1)}
	first, err := a.Send(ctx, b.PeerID(), message)
	must(t, err)
	second, err := a.Send(ctx, b.PeerID(), message)
	must(t, err)
	if first.Duplicate || !second.Duplicate || second.Sequence != first.Sequence {
		t.Fatalf("%+v, then %+v", first, second)
	}
	message.Payload = []byte("y")
	if _, err := a.Send(ctx, b.PeerID(), message); !errors.Is(err, p2pnode.ErrAlreadyExists) {
		t.Fatal(err)
	}
}

func TestABodyThatFailsGetsItsMessageAgain(t *testing.T) {
	node := dial(t, start(t))
	ctx := within(t)
	for n := range 4 {
		_, err := node.Send(ctx, node.PeerID(), p2pnode.Message{Payload: fmt.Append(nil, n)})
		must(t, err)
	}
	failed := func() error {
		for delivery, err := range node.Messages(ctx, "") {
			must(t, err)
			if string(delivery.Payload) == "1" {
				return errors.New("the disk is full")
			}
		}
		return nil
	}
	if failed() == nil {
		t.Fatal("the body did not fail")
	}
	func() {
		defer func() { _ = recover() }()
		for delivery, err := range node.Messages(ctx, "") {
			must(t, err)
			if string(delivery.Payload) != "1" || delivery.Attempt < 2 {
				t.Errorf("got %q, attempt %d", delivery.Payload, delivery.Attempt)
			}
			panic("the app has a bug")
		}
	}()
	for delivery, err := range node.Messages(ctx, "") {
		must(t, err)
		if string(delivery.Payload) != "1" {
			t.Fatalf("got %q", delivery.Payload)
		}
		break
	}
	equal(t, take(t, node, "", 2), []string{"1", "2"})
	equal(t, take(t, node, "", 1), []string{"3"})
}

func TestBatchesAreDoneAsAWhole(t *testing.T) {
	node := dial(t, start(t))
	ctx := within(t)
	sender := node.NewSender(ctx)
	for n := range 100 {
		_, err := sender.Send(ctx, node.PeerID(), p2pnode.Message{Payload: fmt.Append(nil, n)})
		must(t, err)
	}
	must(t, sender.Close())
	last, batches := uint64(0), 0
	for batch, err := range node.Batches(ctx, "", p2pnode.MaxBatch(10)) {
		must(t, err)
		if len(batch) == 0 || len(batch) > 10 || batch[0].Cursor <= last {
			t.Fatalf("a batch of %d after %d", len(batch), last)
		}
		if batches++; batches == 3 {
			break
		}
		last = batch[len(batch)-1].Cursor
	}
	for delivery, err := range node.Messages(ctx, "") {
		must(t, err)
		if delivery.Cursor != last+1 {
			t.Fatalf("cursor %d after %d", delivery.Cursor, last)
		}
		break
	}
}

func TestConsumersPeekAndAfter(t *testing.T) {
	node := dial(t, start(t))
	ctx := within(t)
	for n := range 3 {
		_, err := node.Send(ctx, node.PeerID(), p2pnode.Message{Payload: fmt.Append(nil, n)})
		must(t, err)
	}
	all := []string{"0", "1", "2"}
	equal(t, take(t, node, "", 3, p2pnode.Peek()), all)
	// A message is kept for every consumer that there is.
	for _, err := range node.Messages(ctx, "") {
		must(t, err)
		break
	}
	var cursors []uint64
	for delivery, err := range node.Messages(ctx, "", p2pnode.Consumer("books")) {
		must(t, err)
		if cursors = append(cursors, delivery.Cursor); len(cursors) == 3 {
			break // not done, but in the books
		}
	}
	equal(t, take(t, node, "", 1, p2pnode.Consumer("books"), p2pnode.After(cursors[1])), []string{"2"})
	equal(t, take(t, node, "", 3), all)
}

func TestAnotherLoopHoldsTheConsumer(t *testing.T) {
	node := dial(t, start(t))
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	_, err := node.Send(ctx, node.PeerID(), p2pnode.Message{})
	must(t, err)
	for _, err := range node.Messages(ctx, "") {
		must(t, err)
		for _, err := range node.Messages(ctx, "") {
			e := (*p2pnode.Error)(nil)
			if !errors.As(err, &e) || !errors.Is(err, p2pnode.ErrAlreadyExists) || e.Reason != "CONSUMER_IN_USE" {
				t.Fatal(err)
			}
		}
		break
	}
}

func TestTheLoopEndsWithItsContext(t *testing.T) {
	node := dial(t, start(t))
	ctx, cancel := context.WithTimeout(within(t), 50*time.Millisecond)
	defer cancel()
	ended := false
	for _, err := range node.Messages(ctx, "") {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		ended = true
	}
	if !ended {
		t.Fatal("the loop did not say why it ended")
	}
	// So it does with its Node.
	context.AfterFunc(ctx, func() { node.Close() })
	for _, err := range node.Messages(within(t), "") {
		if !errors.Is(err, p2pnode.ErrClosed) {
			t.Fatal(err)
		}
	}
}

func TestEphemeralNeedsAListener(t *testing.T) {
	node := dial(t, start(t))
	ctx := within(t)
	sent, err := node.Send(ctx, node.PeerID(), p2pnode.Message{}, p2pnode.Ephemeral())
	must(t, err)
	if sent.State != p2pnode.StateRejected || sent.Reason.String() != "REASON_NO_CONSUMER" || sent.Detail == "" {
		t.Fatalf("sent: %+v", sent)
	}
	got := make(chan *p2pnode.Delivery, 1)
	go func() {
		for delivery, err := range node.Messages(ctx, "") {
			if err == nil {
				got <- delivery
			}
			return
		}
	}()
	eventually(t, "the listener got an ephemeral message", func() bool {
		sent, err := node.Send(ctx, node.PeerID(), p2pnode.Message{Payload: []byte("now")}, p2pnode.Ephemeral())
		must(t, err)
		return sent.State == p2pnode.StateStored
	})
	if delivery := <-got; string(delivery.Payload) != "now" || delivery.Cursor != 0 {
		t.Fatalf("delivered: %+v", delivery)
	}
}
