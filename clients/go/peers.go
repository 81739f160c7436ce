package p2pnode

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// Peers lists those of the address book, those connected, those seen on the
// local network and those that messages wait for.
func (n *Node) Peers(ctx context.Context) ([]*Peer, error) {
	var peers []*Peer
	request := &p2pv1.ListPeersRequest{}
	for {
		page, err := call(ctx, n, n.api.ListPeers, request)
		if err != nil {
			return nil, err
		}
		peers = append(peers, page.Peers...)
		if page.NextPageToken == "" {
			return peers, nil
		}
		request = &p2pv1.ListPeersRequest{PageToken: page.NextPageToken}
	}
}

// PeerOption changes an entry of the address book.
type PeerOption func(*p2pv1.AddPeerRequest)

// Alias names a peer: letters, digits, "-", "_" and ".", at most 64.
func Alias(name string) PeerOption {
	return func(r *p2pv1.AddPeerRequest) { r.Alias = name }
}

// Addresses are multiaddrs where the peer may be found; they are added to
// those known.
func Addresses(multiaddrs ...string) PeerOption {
	return func(r *p2pv1.AddPeerRequest) { r.Addresses = append(r.Addresses, multiaddrs...) }
}

// Pinned says whether to keep the peer connected.
func Pinned(pinned bool) PeerOption {
	return func(r *p2pv1.AddPeerRequest) { r.Pinned = &pinned }
}

// Trusting sets what to make of the peer; without it, [TrustTrusted].
func Trusting(trust Trust) PeerOption {
	return func(r *p2pv1.AddPeerRequest) { r.Trust = trust }
}

// AddPeer puts a peer into the address book and trusts it, or changes its
// entry: what no option names stays.
func (n *Node) AddPeer(ctx context.Context, peerID string, options ...PeerOption) (*Peer, error) {
	request := &p2pv1.AddPeerRequest{Peer: peerID}
	for _, option := range options {
		option(request)
	}
	response, err := call(ctx, n, n.api.AddPeer, request)
	return response.GetPeer(), err
}

// RemovePeer takes a peer out of the address book: it is not trusted any more
// and is disconnected. Errors: [ErrNotFound].
func (n *Node) RemovePeer(ctx context.Context, peer string) error {
	_, err := call(ctx, n, n.api.RemovePeer, &p2pv1.RemovePeerRequest{Peer: peer})
	return err
}

// Block refuses a peer altogether, until AddPeer.
func (n *Node) Block(ctx context.Context, peer string) error {
	_, err := call(ctx, n, n.api.Block, &p2pv1.BlockRequest{Peer: peer})
	return err
}

// Connection is how a peer is connected.
type Connection struct {
	// PeerID of the peer.
	PeerID string
	// Route of the connection.
	Route Route
	// Address of the peer, as connected.
	Address string
	// RTT is the round trip; only Ping measures it.
	RTT time.Duration
}

// Connect connects to a peer: by id or alias, or by a multiaddr that ends in
// /p2p/PEER_ID. It needs no trust and takes 10 s at most.
//
// Errors: [ErrNotFound], [ErrFailedPrecondition] (blocked, or no address
// known), [ErrUnavailable], [ErrDeadlineExceeded].
func (n *Node) Connect(ctx context.Context, peer string) (Connection, error) {
	request := &p2pv1.ConnectRequest{Target: &p2pv1.ConnectRequest_Peer{Peer: peer}}
	if strings.HasPrefix(peer, "/") {
		request.Target = &p2pv1.ConnectRequest_Address{Address: peer}
	}
	r, err := call(ctx, n, n.api.Connect, request)
	return Connection{PeerID: r.GetPeerId(), Route: r.GetRoute(), Address: r.GetAddress()}, err
}

// Disconnect closes all connections to a peer. They come back by themselves
// when the peer is pinned, has messages waiting, or dials.
func (n *Node) Disconnect(ctx context.Context, peer string) error {
	_, err := call(ctx, n, n.api.Disconnect, &p2pv1.DisconnectRequest{Peer: peer})
	return err
}

// Ping measures the round trip to a peer, connecting first if needed. Errors
// as Connect.
func (n *Node) Ping(ctx context.Context, peer string) (Connection, error) {
	r, err := call(ctx, n, n.api.Ping, &p2pv1.PingRequest{Peer: peer})
	rtt := time.Duration(r.GetRttMs() * float64(time.Millisecond))
	return Connection{PeerID: r.GetPeerId(), Route: r.GetRoute(), Address: r.GetAddress(), RTT: rtt}, err
}

// FindPeer looks for a peer by its id alone, and does not connect to it. That
// nothing was found is no error: Detail of [Found] says what may be the cause.
// It takes 10 s at most.
func (n *Node) FindPeer(ctx context.Context, peer string) (*Found, error) {
	return call(ctx, n, n.api.FindPeer, &p2pv1.FindPeerRequest{Peer: peer})
}

// ExplainPath tells how a peer is reached and why so: what was tried, what
// came of it, and what would make it better.
func (n *Node) ExplainPath(ctx context.Context, peer string) (*PathExplained, error) {
	return call(ctx, n, n.api.ExplainPath, &p2pv1.ExplainPathRequest{Peer: peer})
}

// Invitation lets one other node join.
type Invitation struct {
	// Ticket is the text to hand over, by any way that nobody else reads.
	Ticket string
	// ID names the ticket in [PeerEvent.InviteID].
	ID string
	// Expires tells when the ticket is good no longer.
	Expires time.Time
	// Addresses where the other side will look for this node, besides the
	// local network.
	Addresses []string
	// LANOnly: none of the addresses leaves the local network.
	LANOnly bool
}

// Invite makes a ticket that is good for this long (0: 1 h; at most 30 days).
// Whoever presents it first is trusted, under the alias given, or under the
// name that it gives itself if that is empty.
func (n *Node) Invite(ctx context.Context, good time.Duration, alias string) (Invitation, error) {
	request := &p2pv1.InviteRequest{Alias: alias}
	if good != 0 {
		request.ExpiresMs = millis(good)
	}
	r, err := call(ctx, n, n.api.Invite, request)
	if err != nil {
		return Invitation{}, err
	}
	return Invitation{
		Ticket: r.Ticket, ID: r.InviteId, Expires: time.UnixMilli(r.ExpiresAt), Addresses: r.Addresses, LANOnly: r.LanOnly,
	}, nil
}

// Joined is the inviter, as the address book has it now.
type Joined struct {
	// Connection to it.
	Connection
	// Alias of it in the address book.
	Alias string
	// Before: this node had redeemed the ticket before.
	Before bool
}

// Join redeems a ticket of another node's Invite: both sides trust each other
// then. The alias names the inviter here; empty, it is the name that the
// inviter gives itself. It takes 30 s at most.
//
// Errors: [ErrInvalidArgument] (no ticket, or of this very node),
// [ErrFailedPrecondition] ([Error.Reason] is TICKET_EXPIRED, TICKET_USED,
// TICKET_UNKNOWN or PEER_BLOCKED), [ErrResourceExhausted], [ErrUnavailable],
// [ErrAlreadyExists] (alias in use).
func (n *Node) Join(ctx context.Context, ticket, alias string) (Joined, error) {
	r, err := call(ctx, n, n.api.Join, &p2pv1.JoinRequest{Ticket: ticket, Alias: alias})
	return Joined{
		Connection: Connection{PeerID: r.GetPeerId(), Route: r.GetRoute(), Address: r.GetAddress()},
		Alias:      r.GetAlias(), Before: r.GetAlreadyJoined(),
	}, err
}

// Introduce makes two nodes that this program talks to know and trust each
// other, as private daemons of a test do.
func Introduce(ctx context.Context, a, b *Node) error {
	return errors.Join(a.add(ctx, b), b.add(ctx, a))
}

func (n *Node) add(ctx context.Context, other *Node) error {
	status, err := other.Status(ctx)
	if err != nil {
		return err
	}
	_, err = n.AddPeer(ctx, status.PeerId, Addresses(status.ListenAddresses...))
	return err
}
