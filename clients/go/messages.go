package p2pnode

import (
	"context"
	"iter"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// Messages of a frame from the daemon, unless MaxBatch says otherwise.
const defaultBatch = 256

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
	// In which Cursor is one.
	inbox string
}

// Ack marks this delivery and all before it as done, as the end of the loop's
// body does: for a body that leaves the loop. Later it has no effect.
func (d *Delivery) Ack() { d.listener.complete(d) }

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
				l.complete(delivery)
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
				l.complete(delivery)
			}
		}
	}
}
