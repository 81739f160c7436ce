package p2pnode

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// Messages of the API that are used as they are; their comments in the stubs
// say what each field means.
type (
	// Peer is one row of the list of peers.
	Peer = p2pv1.Peer
	// Status is the daemon's own condition.
	Status = p2pv1.StatusResponse
	// SentMessage is what became of a message that was sent from here.
	SentMessage = p2pv1.SentMessage
	// NetCheck is how this node is reached, what is wrong and what cures it.
	NetCheck = p2pv1.NetCheckResponse
	// PathExplained is how a peer is reached, and why it is not better.
	PathExplained = p2pv1.ExplainPathResponse
	// Found is where a peer was found.
	Found = p2pv1.FindPeerResponse
	// Route is how a peer is reached.
	Route = p2pv1.Route
	// State is what became of a message, seen from its sender.
	State = p2pv1.MessageState
	// Reason is why a message is not getting on.
	Reason = p2pv1.Reason
	// Trust is what the address book says of a peer.
	Trust = p2pv1.Trust
)

// Routes.
const (
	RouteLAN     = p2pv1.Route_ROUTE_LAN
	RouteDirect  = p2pv1.Route_ROUTE_DIRECT
	RouteRelayed = p2pv1.Route_ROUTE_RELAYED
	RouteNone    = p2pv1.Route_ROUTE_NONE
)

// States of a message: queued and sent pass, the others are final.
const (
	StateQueued    = p2pv1.MessageState_MESSAGE_STATE_QUEUED
	StateSent      = p2pv1.MessageState_MESSAGE_STATE_SENT
	StateStored    = p2pv1.MessageState_MESSAGE_STATE_STORED
	StateExpired   = p2pv1.MessageState_MESSAGE_STATE_EXPIRED
	StateCancelled = p2pv1.MessageState_MESSAGE_STATE_CANCELLED
	StateRejected  = p2pv1.MessageState_MESSAGE_STATE_REJECTED
)

// Trust of a peer.
const (
	TrustKnown   = p2pv1.Trust_TRUST_KNOWN
	TrustTrusted = p2pv1.Trust_TRUST_TRUSTED
	TrustBlocked = p2pv1.Trust_TRUST_BLOCKED
)

// Message is what apps send to each other. The zero value of every field is
// fine.
type Message struct {
	// ID is unique per recipient and channel. Empty: one is made, which Sent
	// tells.
	ID string
	// Type is what the app calls this kind of message.
	Type string
	// Payload is opaque to the daemon.
	Payload []byte
	// Time is when the sending app made it, to the millisecond. Zero: the time
	// of Send.
	Time time.Time
	// Metadata is free for the app.
	Metadata map[string]string
	// Channel it belongs to; "" is one too.
	Channel string
	// ReplyTo is the id of the message that this one answers.
	ReplyTo string

	// From is the peer id of the sender, proven by the connection. This and
	// what follows is set by the daemons, and ignored by Send.
	From string
	// To is the peer id of the recipient.
	To string
	// ReceivedAt is when the receiving daemon stored it.
	ReceivedAt time.Time
	// Sequence is the position in the order of (From, To, Channel), from 1; 0
	// for ephemeral messages.
	Sequence uint64
	// Route is how the link that carried it was connected.
	Route Route
}

// DecodeJSON reads the payload as JSON into v.
func (m *Message) DecodeJSON(v any) error {
	if err := json.Unmarshal(m.Payload, v); err != nil {
		return fmt.Errorf("message %q from %s is not the JSON expected: %w", m.ID, m.From, err)
	}
	return nil
}

func (m *Message) proto() *p2pv1.Message {
	made := m.Time
	if made.IsZero() {
		// Not left to the daemon: sent again, it would be another message.
		made = time.Now()
	}
	return &p2pv1.Message{
		Id: m.ID, Type: m.Type, Payload: m.Payload, Timestamp: made.UnixMilli(), Metadata: m.Metadata,
		Channel: m.Channel, ReplyTo: m.ReplyTo,
	}
}

func fromProto(m *p2pv1.Message) Message {
	return Message{
		ID: m.GetId(), Type: m.GetType(), Payload: m.GetPayload(), Time: time.UnixMilli(m.GetTimestamp()),
		Metadata: m.GetMetadata(), Channel: m.GetChannel(), ReplyTo: m.GetReplyTo(), From: m.GetFrom(), To: m.GetTo(),
		ReceivedAt: time.UnixMilli(m.GetReceivedAt()), Sequence: m.GetSequence(), Route: m.GetRoute(),
	}
}

// Sent is what is known of a message that the daemon has taken.
type Sent struct {
	// ID of the message.
	ID string
	// State when Send returned; see [SentMessage] and Node.GetMessage for
	// later ones.
	State State
	// Duplicate: the id was used for the same content before, and nothing was
	// sent anew.
	Duplicate bool
	// Reason why it is not stored by the peer yet, or never will be.
	Reason Reason
	// Detail is the same for a person, with what to do about it.
	Detail string
	// Sequence is the position in the order of recipient and channel.
	Sequence uint64
}

func sentFrom(r *p2pv1.SendResponse) Sent {
	return Sent{
		ID: r.GetId(), State: r.GetState(), Duplicate: r.GetDuplicate(), Reason: r.GetReason(),
		Detail: r.GetDetail(), Sequence: r.GetSequence(),
	}
}
