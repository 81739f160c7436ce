package p2pnode

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

const (
	// How long a consumer may still be held by the loop before this one, whose
	// end the daemon has not noticed yet, or by a process that just died.
	heldGrace = 3 * time.Second
	// How long a loop that was left waits to tell the daemon how far it came:
	// enough for a restart.
	lastAckWait = 2 * time.Second
)

// consumer names who reads what.
type consumer struct{ channel, name string }

func (l *listener) consumer() consumer {
	name := l.request.Consumer
	if name == "" {
		name = "default"
	}
	return consumer{l.request.Channel, name}
}

// place is a cursor, and the inbox that it belongs to; "" if that is not known.
type place struct {
	inbox  string
	cursor uint64
}

// listener is one loop over a channel.
type listener struct {
	node    *Node
	ctx     context.Context
	cancel  context.CancelFunc
	request *p2pv1.ListenRequest

	// The present stream; nil when there is none.
	stream p2pv1.P2P_ListenClient
	// Ends the present stream.
	drop context.CancelFunc
	wait waiting
	// Since when another holds the consumer.
	held time.Time
	// Newest cursor that was yielded.
	seen uint64
	// A Listen was sent, and whether its inbox is the one of the cursors here
	// is not known yet.
	unsure bool

	acks sync.WaitGroup
	// Wakes the acknowledging goroutine; never blocks.
	wake chan struct{}

	// Held while the acknowledging goroutine talks to the daemon.
	acking sync.Mutex
	// Ends with the connection of the present stream; nil when there is none.
	// Nothing may be acknowledged then: the next inbox could be another one.
	streaming context.Context

	mu sync.Mutex
	// In which all cursors here are; "" before it is known.
	inbox string
	// The newest cursor that is done, and that the daemon knows to be.
	done, acked uint64
	// What the daemon said to an Ack.
	err error
}

func (n *Node) listen(ctx context.Context, channel string, options []ListenOption) *listener {
	with := listening{request: &p2pv1.ListenRequest{
		Channel: channel, AckMode: p2pv1.AckMode_ACK_MODE_MANUAL, MaxBatch: defaultBatch,
	}}
	for _, option := range options {
		option(&with)
	}
	l := &listener{node: n, request: with.request, wake: make(chan struct{}, 1), seen: with.after, done: with.after}
	if !l.request.Peek {
		n.mu.Lock()
		untold := n.untold[l.consumer()]
		n.mu.Unlock()
		l.done, l.inbox = max(l.done, untold.cursor), untold.inbox
		l.seen = l.done
	}
	l.ctx, l.cancel = n.bound(ctx)
	l.acks.Add(1)
	go l.acknowledge()
	return l
}

// next returns what the daemon hands out next, over restarts.
func (l *listener) next() ([]*Delivery, error) {
	for {
		if err := l.refusal(); err != nil {
			return nil, err
		}
		frame, err := l.receive()
		if err == nil {
			if batch := l.fresh(frame.GetDeliveries().GetDeliveries()); len(batch) > 0 {
				return batch, nil
			}
			continue
		}
		l.unsubscribe()
		if l.ctx.Err() != nil {
			return nil, l.node.failed(l.ctx, err)
		}
		if err := l.again(err); err != nil {
			return nil, err
		}
	}
}

// receive subscribes if need be.
func (l *listener) receive() (*p2pv1.ListenResponse, error) {
	if l.stream == nil {
		if err := l.subscribe(); err != nil {
			return nil, err
		}
	}
	frame, err := l.stream.Recv()
	if err == nil {
		l.node.answered()
	}
	return frame, err
}

// again pauses before the next attempt, or returns the error that ends the
// loop.
func (l *listener) again(err error) error {
	if lost(err) {
		return l.wait.next(l.ctx, l.node, err)
	}
	if status.Code(err) != codes.AlreadyExists {
		return l.node.failed(l.ctx, err)
	}
	if l.held.IsZero() {
		l.held = time.Now()
	} else if time.Since(l.held) > heldGrace {
		return l.node.failed(l.ctx, err)
	}
	timer := time.NewTimer(firstWait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-l.ctx.Done():
		return l.node.failed(l.ctx, status.FromContextError(l.ctx.Err()).Err())
	}
}

// fresh leaves out what was yielded before.
func (l *listener) fresh(deliveries []*p2pv1.Delivery) []*Delivery {
	batch := make([]*Delivery, 0, len(deliveries))
	for _, delivery := range deliveries {
		if cursor := delivery.GetCursor(); cursor != 0 {
			if cursor <= l.seen {
				continue
			}
			l.seen = cursor
		}
		batch = append(batch, &Delivery{
			Message: fromProto(delivery.GetMessage()), Cursor: delivery.GetCursor(), Attempt: delivery.GetAttempt(),
			listener: l, inbox: l.inbox,
		})
	}
	return batch
}

// subscribe opens the stream and tells the daemon how far this loop came, if
// that is still true of its inbox.
func (l *listener) subscribe() error {
	if _, err := l.node.Status(l.ctx); err != nil {
		return err
	}
	alive, known := l.node.socket.connected(), l.inbox != ""
	if !known {
		// Nothing to compare with, but a consumer that the daemon does not know
		// yet: Listen would make one.
		if err := l.catchUp(l.ctx); err != nil {
			return err
		}
	}
	ctx, drop := context.WithCancel(l.ctx)
	stream, err := l.node.api.Listen(ctx, l.request)
	if err != nil {
		drop()
		return err
	}
	// The loop sees the end of the stream when it next reads, which may be
	// long after another daemon answers.
	streaming, end := context.WithCancel(ctx)
	stop := context.AfterFunc(alive, end)
	l.stream, l.unsure = stream, known
	l.drop = func() {
		stop()
		drop()
	}
	frame, err := stream.Recv()
	if err != nil {
		return err
	}
	l.compare(frame.GetReady())
	if known {
		if err := l.catchUp(streaming); err != nil {
			return err
		}
	}
	if alive.Err() != nil {
		return io.EOF
	}
	l.wait, l.held = waiting{}, time.Time{}
	l.acking.Lock()
	l.streaming = streaming
	l.acking.Unlock()
	return nil
}

// unsubscribe ends the stream. No acknowledgement is under way after it.
func (l *listener) unsubscribe() {
	if l.stream == nil {
		return
	}
	l.drop()
	l.stream = nil
	l.acking.Lock()
	l.streaming = nil
	l.acking.Unlock()
}

// compare forgets how far this loop came if the inbox is not the one that it
// was, or an older copy of it: cursors mean other messages there.
func (l *listener) compare(ready *p2pv1.ListenReady) {
	l.unsure = false
	_, acked := l.progress()
	replaced := l.inbox != "" && ready.GetInboxId() != l.inbox
	// Nothing was acknowledged since Listen was sent: see unsubscribe.
	older := ready.GetCursor() < acked
	if replaced || older {
		l.forget(nil)
	}
	l.mu.Lock()
	l.inbox = ready.GetInboxId()
	l.mu.Unlock()
}

// catchUp acknowledges what was done before the connection was lost. If the
// daemon never had that, its store was replaced.
func (l *listener) catchUp(ctx context.Context) error {
	done, acked := l.progress()
	if done == 0 || l.request.Peek || l.inbox != "" && done == acked {
		return nil
	}
	err := l.ack(ctx, done)
	switch {
	case err == nil:
		l.mu.Lock()
		l.acked = max(l.acked, done)
		l.err = nil
		l.mu.Unlock()
		return nil
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrInvalidArgument):
		l.forget(err)
		return nil
	default:
		return err
	}
}

// forget begins with an inbox that was replaced: what comes now may not be
// taken for what was done.
func (l *listener) forget(cause error) {
	about := []any{"channel", l.request.Channel, "consumer", l.request.Consumer, "seen", l.seen}
	if cause != nil {
		about = append(about, "error", cause)
	}
	l.node.log.Warn("p2p-node: the inbox was replaced, reading it from where it stands", about...)
	l.mu.Lock()
	l.done, l.acked, l.err = 0, 0, nil
	l.mu.Unlock()
	l.seen = 0
}

// complete notes that a delivery is done, unless its inbox is gone.
func (l *listener) complete(delivery *Delivery) {
	l.mu.Lock()
	if delivery.inbox == l.inbox {
		l.done = max(l.done, delivery.Cursor)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// refusal is what the daemon said to an Ack, if that ends the loop.
func (l *listener) refusal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// acknowledge tells the daemon how far the loop came: at once, and what gets
// done meanwhile with the next call.
func (l *listener) acknowledge() {
	defer l.acks.Done()
	for {
		select {
		case <-l.wake:
		case <-l.ctx.Done():
			return
		}
		l.acknowledgeOnce()
	}
}

func (l *listener) acknowledgeOnce() {
	l.acking.Lock()
	defer l.acking.Unlock()
	done, acked := l.progress()
	ctx := l.streaming
	if done <= acked || ctx == nil || l.request.Peek {
		return
	}
	err := l.ack(ctx, done)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acked = max(l.acked, done)
	case lost(err), ctx.Err() != nil, errors.Is(err, ErrNotFound), errors.Is(err, ErrInvalidArgument):
		// The stream is lost as well, and subscribe follows.
	default:
		l.err = err
	}
}

func (l *listener) ack(ctx context.Context, cursor uint64) error {
	_, err := l.node.api.Ack(ctx, &p2pv1.AckRequest{Channel: l.request.Channel, Consumer: l.request.Consumer, Cursor: cursor})
	return asError(ctx, err)
}

// close ends the loop and tells the daemon how far it came. If that cannot be
// told, the next loop of this Node remembers it.
func (l *listener) close() {
	parent := l.ctx
	l.unsubscribe()
	l.cancel()
	l.acks.Wait()
	done, acked := l.progress()
	if l.request.Peek {
		return
	}
	if done > acked && !l.unsure && l.node.life.Err() == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), lastAckWait)
		defer cancel()
		request := &p2pv1.AckRequest{Channel: l.request.Channel, Consumer: l.request.Consumer, Cursor: done}
		if _, err := call(ctx, l.node, l.node.api.Ack, request); err == nil {
			acked = done
		} else {
			l.node.log.Warn("p2p-node: the daemon could not be told what is done, another process would get it again",
				"channel", l.request.Channel, "consumer", l.request.Consumer, "done", done, "error", err)
		}
	}
	l.node.mu.Lock()
	defer l.node.mu.Unlock()
	if done > acked {
		l.node.untold[l.consumer()] = place{inbox: l.inbox, cursor: done}
	} else {
		delete(l.node.untold, l.consumer())
	}
}

// progress is the newest cursor that is done, and that the daemon knows to be.
func (l *listener) progress() (done, acked uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done, l.acked
}
