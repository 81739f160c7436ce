package p2pnode

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// SendOption changes how a message is sent.
type SendOption func(*p2pv1.SendRequest)

// UntilQueued waits until the message is on this node's disk: the default of
// a [Sender].
func UntilQueued() SendOption {
	return func(r *p2pv1.SendRequest) { r.Wait = p2pv1.Wait_WAIT_QUEUED }
}

// UntilStored waits until the message is on the peer's disk: the default of
// [Node.Send].
func UntilStored() SendOption {
	return func(r *p2pv1.SendRequest) { r.Wait = p2pv1.Wait_WAIT_STORED }
}

// Timeout is how long Send waits for the peer; 10 s without it. A message that
// is still on its way then is no error. A Sender ignores it.
func Timeout(d time.Duration) SendOption {
	return func(r *p2pv1.SendRequest) { r.TimeoutMs = uint32(min(millis(d), math.MaxUint32)) }
}

// TTL is how long the message may wait to be stored by the peer; without it,
// what the daemon is set to (7 days).
func TTL(d time.Duration) SendOption {
	return func(r *p2pv1.SendRequest) { r.TtlMs = millis(d) }
}

// Ephemeral skips both stores: at most once, only to an app that listens now.
// It is never sent again: when the daemon goes meanwhile, that is an error.
func Ephemeral() SendOption {
	return func(r *p2pv1.SendRequest) { r.Ephemeral = true }
}

// DirectOnly keeps the message off relays: it waits for a direct path, and
// those behind it on the channel with it.
func DirectOnly() SendOption {
	return func(r *p2pv1.SendRequest) { r.Path = p2pv1.PathPolicy_PATH_POLICY_DIRECT_ONLY }
}

// PreferDirect does so for this long (0: 5 s), then the message goes any way.
func PreferDirect(wait time.Duration) SendOption {
	return func(r *p2pv1.SendRequest) {
		r.Path = p2pv1.PathPolicy_PATH_POLICY_PREFER_DIRECT
		if wait != 0 {
			r.PreferDirectWaitMs = uint32(min(millis(wait), math.MaxUint32))
		}
	}
}

// millis rounds up to a whole one, since 0 means the default.
func millis(d time.Duration) uint64 {
	return uint64(max(d+time.Millisecond-1, time.Millisecond) / time.Millisecond)
}

// Send sends a message to a peer, named by its peer id or alias. It returns
// once the peer has stored it, or after 10 s ([Timeout]), or 200 ms before
// ctx's deadline: [Sent] tells how far it came. Without an error the message
// is on disk and goes on its way whatever happens.
//
// It is sent once however often the daemon is restarted meanwhile. When ctx
// ends while there is no daemon, the message may have been taken: Sent has its
// id also then, and sending the same again under that id is safe.
func (n *Node) Send(ctx context.Context, peer string, message Message, options ...SendOption) (Sent, error) {
	request, made := sendRequest(peer, message, options)
	var response *p2pv1.SendResponse
	var err error
	if request.Ephemeral {
		response, err = n.api.Send(ctx, request)
		err = n.failed(ctx, err)
	} else {
		response, err = call(ctx, n, n.api.Send, request)
	}
	if err != nil {
		return Sent{ID: request.Message.Id}, err
	}
	sent := sentFrom(response)
	// An id of ours comes twice only because this was sent again.
	sent.Duplicate = sent.Duplicate && !made
	return sent, nil
}

// SendJSON sends v on a channel, as [JSON] makes a message of it; otherwise as
// [Node.Send].
func (n *Node) SendJSON(ctx context.Context, peer, channel string, v any, options ...SendOption) (Sent, error) {
	message, err := JSON(v)
	if err != nil {
		return Sent{}, err
	}
	message.Channel = channel
	return n.Send(ctx, peer, message, options...)
}

// JSON makes a message with v as its payload, and the metadata "content-type"
// that says so.
func JSON(v any) (Message, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return Message{}, fmt.Errorf("no JSON can be made of the body: %w", err)
	}
	return Message{Payload: payload, Metadata: map[string]string{"content-type": "application/json"}}, nil
}

// sendRequest also tells whether the id was made here.
func sendRequest(peer string, message Message, options []SendOption) (request *p2pv1.SendRequest, made bool) {
	request = &p2pv1.SendRequest{Peer: peer, Message: message.proto()}
	for _, option := range options {
		option(request)
	}
	if request.Message.Id == "" {
		request.Message.Id = rand.Text()
		made = true
	}
	return request, made
}

// bytesOf is what a request takes of a frame.
func bytesOf(request *p2pv1.SendRequest) int { return proto.Size(request) }

// LookupOption tells apart messages of one id.
type LookupOption func(*lookup)

type lookup struct{ peer, channel *string }

// ToPeer means the message that was sent to this peer.
func ToPeer(peer string) LookupOption {
	return func(l *lookup) { l.peer = &peer }
}

// OnChannel means the message that was sent on this channel.
func OnChannel(channel string) LookupOption {
	return func(l *lookup) { l.channel = &channel }
}

func lookUp(options []LookupOption) lookup {
	var l lookup
	for _, option := range options {
		option(&l)
	}
	return l
}

// GetMessage tells what became of a message that was sent from here. Known for
// at least 24 h after sending.
//
// Errors: [ErrNotFound]; [ErrFailedPrecondition] when several peers or
// channels have a message of this id and no option says which.
func (n *Node) GetMessage(ctx context.Context, id string, options ...LookupOption) (*SentMessage, error) {
	at := lookUp(options)
	response, err := call(ctx, n, n.api.GetMessage, &p2pv1.GetMessageRequest{Id: id, Peer: at.peer, Channel: at.channel})
	return response.GetMessage(), err
}

// Cancel takes back a message that was not stored by the peer yet. The state
// in the answer is [StateCancelled] when the peer surely never got it,
// [StateStored] when it got it first; otherwise PendingOutcome says that the
// final state follows when the peer is back.
//
// Errors: as GetMessage.
func (n *Node) Cancel(ctx context.Context, id string, options ...LookupOption) (*SentMessage, error) {
	at := lookUp(options)
	response, err := call(ctx, n, n.api.Cancel, &p2pv1.CancelRequest{Id: id, Peer: at.peer, Channel: at.channel})
	return response.GetMessage(), err
}
