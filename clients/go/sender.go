package p2pnode

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

const (
	// Messages of a Sender without a receipt: enough to keep the daemon's
	// commits full.
	senderWindow = 4096
	// And their bytes.
	senderBytes = 8 << 20
	// Of one frame to the daemon.
	frameItems = 512
	frameBytes = 1 << 20
)

// Sender sends many messages without waiting for each: the fast way in.
// Messages to one peer and channel keep their order. It survives restarts of
// the daemon: what has no receipt is sent again under the same id.
//
// It is safe for concurrent use.
type Sender struct {
	node     *Node
	defaults []SendOption
	ctx      context.Context
	cancel   context.CancelFunc
	done     chan struct{}

	mu sync.Mutex
	// Signals every change of what follows.
	changed *sync.Cond
	// In the order given; those with a receipt are dropped now and then.
	items []*Receipt
	// Of items: those before it are on the present stream.
	next int
	// Without a receipt.
	live, bytes int
	lastRef     uint64
	byRef       map[uint64]*Receipt
	// Of the present stream.
	broken bool
	// Why it takes nothing more.
	err error
	// First refusal since the last Flush.
	refused error
}

// Receipt is the answer to one message of a [Sender], once it is there.
type Receipt struct {
	// ID of the message.
	ID string

	done    chan struct{}
	sent    Sent
	err     error
	ref     uint64
	size    int
	made    bool
	ended   bool
	request *p2pv1.SendRequest
}

// Done is closed when the answer is there.
func (r *Receipt) Done() <-chan struct{} { return r.done }

// Wait returns the answer, as Node.Send does, or ctx's error.
func (r *Receipt) Wait(ctx context.Context) (Sent, error) {
	select {
	case <-r.done:
		return r.sent, r.err
	case <-ctx.Done():
		return Sent{ID: r.ID}, asError(ctx, status.FromContextError(ctx.Err()).Err())
	}
}

// NewSender makes a Sender with options for all its messages. It answers for
// each once it is on this node's disk, unless [UntilStored] is given: then a
// peer that is away for long stops the Sender after 4,096 messages.
//
// When ctx ends, so does the Sender, and what has no receipt yet fails. End it
// with Close otherwise.
func (n *Node) NewSender(ctx context.Context, options ...SendOption) *Sender {
	s := &Sender{
		node: n, defaults: append([]SendOption{UntilQueued()}, options...),
		done: make(chan struct{}), byRef: map[uint64]*Receipt{},
	}
	s.changed = sync.NewCond(&s.mu)
	s.ctx, s.cancel = n.bound(ctx)
	context.AfterFunc(s.ctx, func() {
		s.fail(n.failed(s.ctx, status.FromContextError(context.Cause(s.ctx)).Err()))
	})
	go s.run()
	return s
}

// Send hands a message over and returns at once, unless 4,096 messages or
// 8 MiB are without a receipt: then it waits for room. What the daemon said is
// in the Receipt; who does not look there gets the first refusal from Flush.
func (s *Sender) Send(ctx context.Context, peer string, message Message, options ...SendOption) (*Receipt, error) {
	all := s.defaults
	if len(options) > 0 {
		all = append(append([]SendOption(nil), s.defaults...), options...)
	}
	request, made := sendRequest(peer, message, all)
	receipt := &Receipt{ID: request.Message.Id, done: make(chan struct{}), request: request, made: made, size: bytesOf(request)}
	if limit := s.node.frame.Load(); int64(receipt.size) > limit-1024 {
		return nil, newError(codes.OutOfRange, "the message is larger than a frame of the daemon: send it in parts, or raise max_message_bytes")
	}
	// Only who has to wait for room pays for being woken.
	stop := func() bool { return true }
	defer func() { stop() }()
	s.mu.Lock()
	defer s.mu.Unlock()
	for waits := false; s.err == nil && s.live > 0 && (s.live >= senderWindow || s.bytes+receipt.size > senderBytes); {
		if ctx.Err() != nil {
			return nil, asError(ctx, status.FromContextError(ctx.Err()).Err())
		}
		if !waits {
			waits = true
			stop = context.AfterFunc(ctx, s.wake)
		}
		s.changed.Wait()
	}
	if s.err != nil {
		return nil, s.err
	}
	s.lastRef++
	receipt.ref = s.lastRef
	s.items = append(s.items, receipt)
	s.byRef[receipt.ref] = receipt
	s.live++
	s.bytes += receipt.size
	s.changed.Broadcast()
	return receipt, nil
}

// Flush waits until every message has its receipt, and returns the first
// refusal since the last Flush.
func (s *Sender) Flush(ctx context.Context) error {
	defer context.AfterFunc(ctx, s.wake)()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.live > 0 && s.err == nil {
		if ctx.Err() != nil {
			return asError(ctx, status.FromContextError(ctx.Err()).Err())
		}
		s.changed.Wait()
	}
	if s.err != nil && s.err != errSenderClosed {
		return s.err
	}
	refused := s.refused
	s.refused = nil
	return refused
}

var errSenderClosed error = newError(codes.Canceled, "the Sender was closed", ErrClosed)

// Close waits as Flush does, then ends the Sender.
func (s *Sender) Close() error {
	err := s.Flush(s.ctx)
	s.fail(errSenderClosed)
	<-s.done
	return err
}

func (s *Sender) wake() {
	s.mu.Lock()
	s.changed.Broadcast()
	s.mu.Unlock()
}

// fail ends the Sender, and all that waits in it.
func (s *Sender) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		for _, receipt := range s.items {
			s.end(receipt, Sent{ID: receipt.ID}, err)
		}
		s.items, s.next = nil, 0
	}
	s.changed.Broadcast()
	s.cancel()
}

// end gives a message its answer.
func (s *Sender) end(receipt *Receipt, sent Sent, err error) {
	if receipt.ended {
		return
	}
	receipt.ended = true
	receipt.sent, receipt.err = sent, err
	receipt.request = nil
	delete(s.byRef, receipt.ref)
	s.live--
	s.bytes -= receipt.size
	if err != nil && s.refused == nil {
		s.refused = err
	}
	close(receipt.done)
}
