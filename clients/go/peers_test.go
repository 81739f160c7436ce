package p2pnode_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

func TestTheAddressBook(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	peer, err := a.AddPeer(ctx, b.PeerID(), p2pnode.Alias("bob"), p2pnode.Pinned(true))
	must(t, err)
	if peer.Alias != "bob" || !peer.Pinned || peer.Trust != p2pnode.TrustTrusted || len(peer.Addresses) == 0 {
		t.Fatalf("%v", peer)
	}
	connection, err := a.Connect(ctx, "bob")
	must(t, err)
	if connection.PeerID != b.PeerID() || connection.Route != p2pnode.RouteLAN {
		t.Fatalf("%+v", connection)
	}
	connection, err = a.Ping(ctx, "bob")
	must(t, err)
	if connection.RTT <= 0 || connection.RTT > time.Minute {
		t.Fatalf("%+v", connection)
	}
	peers, err := b.Peers(ctx)
	must(t, err)
	if len(peers) != 1 || peers[0].PeerId != a.PeerID() || !peers[0].Online {
		t.Fatalf("%v", peers)
	}
	path, err := a.ExplainPath(ctx, "bob")
	must(t, err)
	if path.Route != p2pnode.RouteLAN || len(path.Advice) != 0 || path.Verdict == "" {
		t.Fatalf("%v", path)
	}
	found, err := a.FindPeer(ctx, "bob")
	must(t, err)
	if found.PeerId != b.PeerID() {
		t.Fatalf("%v", found)
	}
	check, err := a.NetCheck(ctx)
	must(t, err)
	if check.Verdict == "" {
		t.Fatalf("%v", check)
	}
	must(t, a.Disconnect(ctx, "bob"))
	must(t, a.RemovePeer(ctx, "bob"))
}

func TestMessagesForADirectPath(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	for _, option := range []p2pnode.SendOption{
		p2pnode.DirectOnly(), p2pnode.PreferDirect(0), p2pnode.PreferDirect(time.Minute),
	} {
		sent, err := a.Send(ctx, b.PeerID(), p2pnode.Message{}, option)
		must(t, err)
		if sent.State != p2pnode.StateStored {
			t.Fatalf("%+v", sent)
		}
	}
}

func TestCancelTakesAMessageBack(t *testing.T) {
	node := dial(t, start(t))
	ctx := within(t)
	_, err := node.AddPeer(ctx, stranger)
	must(t, err)
	sent, err := node.Send(ctx, stranger, p2pnode.Message{}, p2pnode.Timeout(time.Millisecond), p2pnode.TTL(time.Hour))
	must(t, err)
	if sent.State != p2pnode.StateQueued || sent.Detail == "" {
		t.Fatalf("%+v", sent)
	}
	found, err := node.Cancel(ctx, sent.ID, p2pnode.ToPeer(stranger), p2pnode.OnChannel(""))
	must(t, err)
	if found.State != p2pnode.StateCancelled {
		t.Fatalf("%v", found)
	}
}

func TestWatchPeersTellsEveryChange(t *testing.T) {
	a, b := pair(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	snapshots, online, restarted := 0, false, false
	for event, err := range a.WatchPeers(ctx) {
		lacks(t, err)
		must(t, err)
		switch event.Cause {
		case p2pnode.CauseSnapshot:
			if len(event.Peers) != 1 || event.Peers[0].PeerId != b.PeerID() {
				t.Fatalf("%v", event.Peers)
			}
			if snapshots++; snapshots == 1 {
				_, err := a.Connect(ctx, b.PeerID())
				must(t, err)
			}
			online = online || event.Peers[0].Online
		case p2pnode.CauseOnline:
			online = online || event.Peer.PeerId == b.PeerID()
		}
		if snapshots == 1 && online && !restarted {
			restarted = true
			must(t, a.Restart(ctx))
		}
		if snapshots == 2 {
			break
		}
	}
	if !online {
		t.Fatal("not seen online")
	}
}

func TestAClientFindsItsServer(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	log := &logTo{}
	dialled := make(chan error, 1)
	var client *p2pnode.Client
	go func() {
		var err error
		client, err = p2pnode.DialClient(ctx, p2pnode.WithSocket(a.Daemon.Socket()), p2pnode.WithLogger(log.logger()))
		dialled <- err
	}()
	server, err := p2pnode.DialServer(ctx, p2pnode.WithSocket(b.Daemon.Socket()), p2pnode.WithLogger(log.logger()))
	lacks(t, err)
	must(t, err)
	defer server.Close()
	must(t, <-dialled)
	defer client.Close()
	if client.Server != b.PeerID() {
		t.Fatalf("server: %s", client.Server)
	}
	_, err = client.TellJSON(ctx, "", "hello")
	must(t, err)
	equal(t, take(t, server.Node, "", 1), []string{`"hello"`})
	// The role is announced again when the daemon below it is back.
	b.Kill()
	must(t, client.Disconnect(ctx, b.PeerID())) // or it is noticed only in time
	eventually(t, "the server is offline", func() bool {
		peers, err := client.Peers(ctx)
		must(t, err)
		return len(peers) == 1 && !peers[0].Online && len(peers[0].Roles) == 0
	})
	must(t, b.Restart(ctx))
	peer, err := client.FindRole(ctx, p2pnode.RoleServer)
	must(t, err)
	if peer.PeerId != b.PeerID() {
		t.Fatalf("%v", peer)
	}
	// A second server makes the role ambiguous.
	c := start(t)
	other := dial(t, c)
	must(t, p2pnode.Introduce(ctx, a.Node, other))
	must(t, other.SetPresence(ctx, "the other one", p2pnode.RoleServer, "spare"))
	_, err = client.FindRole(ctx, "spare")
	must(t, err)
	eventually(t, "the role is ambiguous", func() bool {
		_, err := client.FindRole(ctx, p2pnode.RoleServer)
		return errors.Is(err, p2pnode.ErrAmbiguous)
	})
	peer, err = client.FindRole(ctx, "spare")
	must(t, err)
	if peer.Presence != "the other one" || !slices.Contains(peer.Roles, "spare") {
		t.Fatalf("%v", peer)
	}
}

func TestInviteAndJoin(t *testing.T) {
	a, b := side{}, side{}
	a.Daemon, b.Daemon = start(t), start(t)
	a.Node, b.Node = dial(t, a.Daemon), dial(t, b.Daemon)
	ctx := within(t)
	invitation, err := a.Invite(ctx, time.Hour, "bob")
	lacks(t, err)
	must(t, err)
	if invitation.Ticket == "" || time.Until(invitation.Expires) > time.Hour {
		t.Fatalf("%+v", invitation)
	}
	joined, err := b.Join(ctx, invitation.Ticket, "alice")
	must(t, err)
	if joined.PeerID != a.PeerID() || joined.Alias != "alice" || joined.Before {
		t.Fatalf("%+v", joined)
	}
	_, err = a.Send(ctx, "bob", p2pnode.Message{Payload: []byte("welcome")})
	must(t, err)
	equal(t, take(t, b.Node, "", 1), []string{"welcome"})
	_, err = a.Join(ctx, invitation.Ticket, "")
	e := (*p2pnode.Error)(nil)
	if !errors.As(err, &e) || e.Reason != "TICKET_OWN" {
		t.Fatal(err)
	}
}
