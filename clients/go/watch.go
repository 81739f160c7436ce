package p2pnode

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// Cause is why a row of the list of peers changed.
type Cause = p2pv1.ChangeCause

// Causes of a [PeerEvent].
const (
	// CauseSnapshot: no change, but all rows of the moment.
	CauseSnapshot = p2pv1.ChangeCause_CHANGE_CAUSE_UNSPECIFIED
	CauseOnline   = p2pv1.ChangeCause_CHANGE_CAUSE_ONLINE
	CauseOffline  = p2pv1.ChangeCause_CHANGE_CAUSE_OFFLINE
	CauseRoute    = p2pv1.ChangeCause_CHANGE_CAUSE_ROUTE
	CausePresence = p2pv1.ChangeCause_CHANGE_CAUSE_PRESENCE
	CauseBook     = p2pv1.ChangeCause_CHANGE_CAUSE_BOOK
	// CauseJoined: the peer redeemed a ticket of this node.
	CauseJoined = p2pv1.ChangeCause_CHANGE_CAUSE_JOINED
	CauseLAN    = p2pv1.ChangeCause_CHANGE_CAUSE_LAN
	// CauseRemoved: nothing is known of the peer any more.
	CauseRemoved = p2pv1.ChangeCause_CHANGE_CAUSE_REMOVED
)

// PeerEvent is all peers, or the change of one.
type PeerEvent struct {
	// Cause of the change, or CauseSnapshot.
	Cause Cause
	// Peers is every row; of a snapshot only.
	Peers []*Peer
	// Peer is the row after the change; nil in a snapshot, and with
	// CauseRemoved only its PeerId is set.
	Peer *Peer
	// InviteID tells with CauseJoined which ticket it was.
	InviteID string
	// Detail is for a person; may be empty.
	Detail string
}

// WatchOption narrows what is watched.
type WatchOption func(*p2pv1.WatchPeersRequest)

// BookOnly leaves out peers that are not in the address book.
func BookOnly() WatchOption {
	return func(r *p2pv1.WatchPeersRequest) { r.BookOnly = true }
}

// WatchPeers yields all peers as [Node.Peers] lists them, then every change.
// Another snapshot comes when the daemon was restarted or the loop did not
// keep up: it replaces what was known.
//
// The loop ends after it yielded an error: ctx ended, or the daemon refused.
func (n *Node) WatchPeers(ctx context.Context, options ...WatchOption) iter.Seq2[PeerEvent, error] {
	return func(yield func(PeerEvent, error) bool) {
		ctx, cancel := n.bound(ctx)
		defer cancel()
		request := &p2pv1.WatchPeersRequest{}
		for _, option := range options {
			option(request)
		}
		var wait waiting
		for {
			more, err := n.watch(ctx, request, &wait, func(event PeerEvent) bool { return yield(event, nil) })
			if !more {
				return
			}
			if ctx.Err() == nil && lost(err) {
				err = wait.next(ctx, n, err)
			} else {
				err = n.failed(ctx, err)
			}
			if err != nil {
				yield(PeerEvent{}, err)
				return
			}
		}
	}
}

// watch yields what one stream brings; more is false when the loop was left.
func (n *Node) watch(ctx context.Context, request *p2pv1.WatchPeersRequest, wait *waiting, yield func(PeerEvent) bool) (more bool, err error) {
	if _, err := n.Status(ctx); err != nil {
		return true, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := n.api.WatchPeers(ctx, request)
	if err != nil {
		return true, err
	}
	var snapshot []*Peer
	for {
		frame, err := stream.Recv()
		if err != nil {
			return true, err
		}
		*wait = waiting{}
		n.answered()
		switch frame := frame.Frame.(type) {
		case *p2pv1.WatchPeersResponse_Lagged:
			snapshot = nil
		case *p2pv1.WatchPeersResponse_Snapshot:
			snapshot = append(snapshot, frame.Snapshot.Peers...)
			if !frame.Snapshot.Last {
				continue
			}
			if !yield(PeerEvent{Peers: snapshot}) {
				return false, nil
			}
			snapshot = nil
		case *p2pv1.WatchPeersResponse_Changes:
			for _, change := range frame.Changes.Changes {
				event := PeerEvent{Cause: change.Cause, Peer: change.Peer, InviteID: change.InviteId, Detail: change.Detail}
				if !yield(event) {
					return false, nil
				}
			}
		}
	}
}

const (
	// Between two rounds of dialling peers that may have a role: the first
	// pause and the longest.
	firstRound   = time.Second
	longestRound = 30 * time.Second
	// Peers that are dialled at once.
	dialsAtOnce = 8
)

// FindRole waits until a trusted peer announces a role, and returns that peer.
// Roles are known of connected peers only: it connects to trusted ones that
// are not.
//
// Errors: [ErrAmbiguous] when several do; ctx ended.
func (n *Node) FindRole(ctx context.Context, role string) (*Peer, error) {
	ctx, cancel := n.bound(ctx)
	defer cancel()
	n.spawn(func() { n.reach(ctx) })
	found := map[string]*Peer{}
	note := func(peer *Peer) {
		if peer.Trust == TrustTrusted && slices.Contains(peer.Roles, role) {
			found[peer.PeerId] = peer
		} else {
			delete(found, peer.PeerId)
		}
	}
	told := false
	for event, err := range n.WatchPeers(ctx, BookOnly()) {
		if err != nil {
			return nil, fmt.Errorf("no peer with the role %q: %w", role, err)
		}
		if event.Cause == CauseSnapshot {
			clear(found)
		} else {
			note(event.Peer)
		}
		for _, peer := range event.Peers {
			note(peer)
		}
		switch len(found) {
		case 0:
			if !told {
				told = true
				n.log.Info("p2p-node: waiting for a trusted peer with the role", "role", role)
			}
		case 1:
			for _, peer := range found {
				return peer, nil
			}
		default:
			return nil, fmt.Errorf("role %q: %w: %s; name the one to use", role, ErrAmbiguous, names(found))
		}
	}
	return nil, ErrClosed
}

// reach connects to the trusted peers that are not connected, again and again,
// until ctx ends. Those that cannot be reached now may be the next time.
func (n *Node) reach(ctx context.Context) {
	for pause := firstRound; ; pause = min(2*pause, longestRound) {
		peers, err := n.Peers(ctx)
		if err != nil {
			return
		}
		var dials sync.WaitGroup
		places := make(chan struct{}, dialsAtOnce)
		for _, peer := range peers {
			if peer.Trust != TrustTrusted || peer.Connections > 0 || len(peer.Addresses) == 0 {
				continue
			}
			places <- struct{}{}
			dials.Add(1)
			go func() {
				defer dials.Done()
				defer func() { <-places }()
				target := &p2pv1.ConnectRequest_Peer{Peer: peer.PeerId}
				_, _ = n.api.Connect(ctx, &p2pv1.ConnectRequest{Target: target})
			}()
		}
		dials.Wait()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func names(peers map[string]*Peer) string {
	var names []string
	for id, peer := range peers {
		if peer.Alias != "" {
			id = peer.Alias
		}
		names = append(names, id)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
