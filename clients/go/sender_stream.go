package p2pnode

import (
	"context"

	"google.golang.org/grpc/codes"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// run keeps a stream to the daemon until the Sender ends.
func (s *Sender) run() {
	defer close(s.done)
	defer s.cancel()
	var wait waiting
	for s.unfinished() {
		// Only a daemon that answers gets the stream; it tells its limits, too.
		if _, err := s.node.Status(s.ctx); err != nil {
			s.fail(s.node.failed(s.ctx, err))
			return
		}
		worked, err := s.stream()
		if s.ctx.Err() != nil || s.ended() {
			return
		}
		if !lost(err) {
			s.fail(s.node.failed(s.ctx, err))
			return
		}
		if worked {
			wait = waiting{}
		}
		if err := wait.next(s.ctx, s.node, err); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Sender) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// unfinished waits for something to send; false when the Sender ended.
func (s *Sender) unfinished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.live == 0 && s.err == nil {
		s.changed.Wait()
	}
	return s.err == nil
}

// stream sends all that has no receipt, then what comes, until the stream
// breaks; it tells whether any receipt came.
func (s *Sender) stream() (worked bool, err error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream, err := s.node.api.SendStream(ctx)
	if err != nil {
		return false, err
	}
	s.rewind()
	received := make(chan error, 1)
	go func() {
		err := s.receive(stream, &worked)
		s.mu.Lock()
		s.broken = true
		s.changed.Broadcast()
		s.mu.Unlock()
		received <- err
	}()
	for {
		frame := s.frame()
		if frame == nil || stream.Send(frame) != nil {
			break
		}
	}
	if s.ended() {
		cancel()
	}
	// The reader knows why.
	err = <-received
	s.dropEphemeral(err)
	return worked, err
}

// rewind begins anew with the first message that has no receipt.
func (s *Sender) rewind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compact()
	s.next = 0
	s.broken = false
}

func (s *Sender) compact() {
	kept, next := s.items[:0], 0
	for at, receipt := range s.items {
		if !receipt.ended {
			kept = append(kept, receipt)
			if at < s.next {
				next++
			}
		}
	}
	clear(s.items[len(kept):])
	s.items, s.next = kept, next
}

// frame waits for messages that are not on this stream; nil at its end.
func (s *Sender) frame() *p2pv1.SendStreamRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.next == len(s.items) && !s.broken && s.err == nil {
		s.changed.Wait()
	}
	if s.broken || s.err != nil {
		return nil
	}
	if len(s.items) > 2*senderWindow {
		s.compact()
	}
	request, size := &p2pv1.SendStreamRequest{}, 0
	for s.next < len(s.items) && len(request.Items) < frameItems {
		receipt := s.items[s.next]
		if size += receipt.size; size > frameBytes && len(request.Items) > 0 {
			break
		}
		s.next++
		if !receipt.ended {
			request.Items = append(request.Items, &p2pv1.SendItem{Ref: receipt.ref, Request: receipt.request})
		}
	}
	return request
}

// receive takes receipts until the stream ends.
func (s *Sender) receive(stream p2pv1.P2P_SendStreamClient, worked *bool) error {
	for {
		frame, err := stream.Recv()
		if err != nil {
			return err
		}
		*worked = true
		s.node.answered()
		s.mu.Lock()
		for _, answer := range frame.GetReceipts().GetReceipts() {
			receipt := s.byRef[answer.GetRef()]
			if receipt == nil {
				continue
			}
			if code := codes.Code(answer.GetCode()); code != codes.OK {
				s.end(receipt, Sent{ID: receipt.ID}, refused(answer))
				continue
			}
			sent := sentFrom(answer.GetResponse())
			sent.Duplicate = sent.Duplicate && !receipt.made
			s.end(receipt, sent, nil)
		}
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}

// dropEphemeral fails what was on the broken stream and may not be sent again.
func (s *Sender) dropEphemeral(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, receipt := range s.items[:min(s.next, len(s.items))] {
		if !receipt.ended && receipt.request.Ephemeral {
			s.end(receipt, Sent{ID: receipt.ID}, newError(codes.Unavailable, "the daemon went while it had the message: "+plain(cause)))
		}
	}
	s.changed.Broadcast()
}
