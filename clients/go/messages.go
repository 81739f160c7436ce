package p2pnode

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

const (
	// Messages of a frame from the daemon, unless MaxBatch says otherwise.
	defaultBatch = 256
	// How long a consumer may still be held by the loop before this one, whose
	// end the daemon has not noticed yet, or by a process that just died.
	heldGrace = 3 * time.Second
	// How long a loop that was left waits to tell the daemon how far it came:
	// enough for a restart.
	lastAckWait = 2 * time.Second
)

// Delivery is a message handed to this app.
type Delivery struct {
	Message
	// Cursor is the position in this node's inbox of the channel; it grows,
	// and is never given twice. 0 for ephemeral messages.
	Cursor uint64
	// Attempt is 1 the first time that the daemon hands it to this consumer.
	// It hands out ahead of the loop: a higher one does not mean that the loop
	// saw it.
	Attempt uint32

	listener *listener
}

// Ack marks this delivery and all before it as done, as the end of the loop's
// body does: for a body that leaves the loop. Later it has no effect.
func (d *Delivery) Ack() { d.listener.complete(d.Cursor) }

// ListenOption changes how messages are taken from the inbox.
type ListenOption func(*listening)

type listening struct {
	request *p2pv1.ListenRequest
	after   uint64
}

// Consumer names who reads: each consumer gets all messages of the channel and
// has a cursor of its own. Without it, "default".
func Consumer(name string) ListenOption {
	return func(l *listening) { l.request.Consumer = name }
}

// MaxBatch is how many messages the daemon puts into a frame at most, 4,096 at
// most; 256 without it. A frame never has more than 1 MiB, or one message.
func MaxBatch(messages int) ListenOption {
	return func(l *listening) { l.request.MaxBatch = uint32(max(1, messages)) }
}

// Peek reads what is in the inbox and what comes without consuming.
func Peek() ListenOption {
	return func(l *listening) { l.request.Peek = true }
}

// After says how far this app came by its own books: what it did and the
// cursor kept together, in one transaction say. Deliveries up to that cursor
// are acknowledged and not handed out again, so that each is done once even if
// the app died before it could acknowledge.
func After(cursor uint64) ListenOption {
	return func(l *listening) { l.after = cursor }
}

// Messages yields the messages of a channel, oldest first, then those that
// come, and goes on over restarts of the daemon.
//
// A delivery is done when the loop's body reaches its end, or continue: it is
// acknowledged in the background, and never handed to this consumer again.
// Leaving the loop in any other way (break, return, goto, a panic) means that
// it is not done: the next loop gets it again, unless the body called
// [Delivery.Ack]. When the daemon is killed, what was done is remembered here
// and not yielded twice; when the app is killed, what it did last may come
// again: see [After].
//
//	for delivery, err := range node.Messages(ctx, "readings") {
//		if err != nil {
//			return err
//		}
//		if err := store(delivery); err != nil {
//			return err // not done: it comes again
//		}
//	}
//
// The loop ends after it yielded an error, with a nil delivery: ctx ended, or
// the daemon refused: [ErrAlreadyExists] when another process reads as this
// consumer, [ErrInvalidArgument].
func (n *Node) Messages(ctx context.Context, channel string, options ...ListenOption) iter.Seq2[*Delivery, error] {
	return func(yield func(*Delivery, error) bool) {
		l := n.listen(ctx, channel, options)
		defer l.close()
		for {
			batch, err := l.next()
			if err != nil {
				yield(nil, err)
				return
			}
			for _, delivery := range batch {
				if !yield(delivery, nil) {
					return
				}
				l.complete(delivery.Cursor)
			}
		}
	}
}

// Batches yields the same as [Node.Messages], as many at a time as the daemon
// put into a frame, never none. All of a batch are done when the body reaches
// its end.
func (n *Node) Batches(ctx context.Context, channel string, options ...ListenOption) iter.Seq2[[]*Delivery, error] {
	return func(yield func([]*Delivery, error) bool) {
		l := n.listen(ctx, channel, options)
		defer l.close()
		for {
			batch, err := l.next()
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(batch, nil) {
				return
			}
			for _, delivery := range batch {
				l.complete(delivery.Cursor)
			}
		}
	}
}

// consumer names who reads what.
type consumer struct{ channel, name string }

func (l *listener) consumer() consumer {
	name := l.request.Consumer
	if name == "" {
		name = "default"
	}
	return consumer{l.request.Channel, name}
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

	acks sync.WaitGroup
	// Wakes the acknowledging goroutine; never blocks.
	wake chan struct{}

	mu sync.Mutex
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
		l.done = max(l.done, n.untold[l.consumer()])
		n.mu.Unlock()
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
		l.wait, l.held = waiting{}, time.Time{}
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
			listener: l,
		})
	}
	return batch
}

// subscribe opens the stream, after it told the daemon how far this loop came.
func (l *listener) subscribe() error {
	if _, err := l.node.Status(l.ctx); err != nil {
		return err
	}
	if err := l.catchUp(); err != nil {
		return err
	}
	ctx, drop := context.WithCancel(l.ctx)
	stream, err := l.node.api.Listen(ctx, l.request)
	if err != nil {
		drop()
		return err
	}
	l.stream, l.drop = stream, drop
	return nil
}

func (l *listener) unsubscribe() {
	if l.stream != nil {
		l.drop()
		l.stream = nil
	}
}

// catchUp acknowledges what was done before the connection was lost. If the
// daemon never had that, its store was replaced, and cursors begin anew: what
// comes now may not be taken for what was done.
func (l *listener) catchUp() error {
	done, _ := l.progress()
	if done == 0 || l.request.Peek {
		return nil
	}
	err := l.ack(l.ctx, done)
	switch {
	case err == nil:
		l.mu.Lock()
		l.acked = max(l.acked, done)
		l.err = nil
		l.mu.Unlock()
		return nil
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrInvalidArgument):
		l.node.log.Warn("p2p-node: the inbox was replaced, reading it from where it stands",
			"channel", l.request.Channel, "consumer", l.request.Consumer, "done", done, "error", err)
		l.mu.Lock()
		l.done, l.acked, l.err = 0, 0, nil
		l.mu.Unlock()
		l.seen = 0
		return nil
	default:
		return err
	}
}

// complete notes that a delivery is done.
func (l *listener) complete(cursor uint64) {
	l.mu.Lock()
	l.done = max(l.done, cursor)
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
		l.acknowledgeOnce(l.ctx)
	}
}

func (l *listener) acknowledgeOnce(ctx context.Context) {
	done, acked := l.progress()
	if done <= acked || l.request.Peek {
		return
	}
	err := l.ack(ctx, done)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acked = max(l.acked, done)
	case lost(err), ctx.Err() != nil, errors.Is(err, ErrNotFound), errors.Is(err, ErrInvalidArgument):
		// The stream is lost as well, and catchUp follows.
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
	if done > acked && l.node.life.Err() == nil {
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
		l.node.untold[l.consumer()] = done
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
