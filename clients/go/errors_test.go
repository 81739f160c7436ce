package p2pnode_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

const stranger = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"

// forget removes the store of a daemon, but not its key.
func forget(daemon *p2pnode.Daemon) error {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(daemon.Socket()), "state", "*.db*"))
	if err != nil || len(files) == 0 {
		return errors.Join(err, errors.New("there is no store to remove"))
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	return nil
}

func TestErrorsAreTyped(t *testing.T) {
	node := dial(t, start(t))
	ctx := within(t)
	_, err := node.Send(ctx, "nobody", p2pnode.Message{})
	e := (*p2pnode.Error)(nil)
	if !errors.As(err, &e) || !errors.Is(err, p2pnode.ErrNotFound) || errors.Is(err, p2pnode.ErrUnavailable) ||
		e.Reason != "PEER_UNKNOWN" || status.Code(err) != codes.NotFound {
		t.Fatalf("%#v", err)
	}
	if st, ok := status.FromError(err); !ok || st.Message() != e.Message || len(st.Details()) != 1 {
		t.Fatalf("%#v", st)
	}
	_, err = node.Send(ctx, stranger, p2pnode.Message{})
	if !errors.As(err, &e) || e.Reason != "PEER_NOT_IN_BOOK" || e.Metadata["peer"] != stranger {
		t.Fatalf("%#v", err)
	}
	_, err = node.Send(ctx, node.PeerID(), p2pnode.Message{Type: strings.Repeat("t", 257)})
	if !errors.As(err, &e) || !errors.Is(err, p2pnode.ErrInvalidArgument) || e.Field != "message.type" {
		t.Fatalf("%#v", err)
	}
	_, err = node.GetMessage(ctx, "none")
	if !errors.Is(err, p2pnode.ErrNotFound) {
		t.Fatal(err)
	}
	_, err = node.AddPeer(ctx, stranger)
	must(t, err)
	must(t, node.Block(ctx, stranger))
	_, err = node.Connect(ctx, stranger)
	if !errors.As(err, &e) || !errors.Is(err, p2pnode.ErrFailedPrecondition) || e.Reason != "PEER_BLOCKED" {
		t.Fatalf("%#v", err)
	}
	must(t, node.RemovePeer(ctx, stranger))
	if err := node.RemovePeer(ctx, stranger); !errors.Is(err, p2pnode.ErrNotFound) {
		t.Fatal(err)
	}
	// A sender refuses one and goes on.
	sender := node.NewSender(ctx)
	bad, err := sender.Send(ctx, "nobody", p2pnode.Message{})
	must(t, err)
	good, err := sender.Send(ctx, node.PeerID(), p2pnode.Message{})
	must(t, err)
	if _, err := bad.Wait(ctx); !errors.Is(err, p2pnode.ErrNotFound) {
		t.Fatal(err)
	}
	_, err = good.Wait(ctx)
	must(t, err)
	if err := sender.Close(); !errors.Is(err, p2pnode.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := sender.Send(ctx, node.PeerID(), p2pnode.Message{}); !errors.Is(err, p2pnode.ErrClosed) {
		t.Fatal(err)
	}
}

// refusal gives the error of an item that a Sender's daemon refuses.
func refusal(t *testing.T, node *p2pnode.Node, peer string, message p2pnode.Message) *p2pnode.Error {
	t.Helper()
	ctx := within(t)
	sender := node.NewSender(ctx)
	receipt, err := sender.Send(ctx, peer, message)
	must(t, err)
	_, err = receipt.Wait(ctx)
	e := (*p2pnode.Error)(nil)
	if !errors.As(err, &e) || e.Message == "" {
		t.Fatalf("%#v", err)
	}
	if flushed := sender.Close(); flushed != err {
		t.Fatalf("%v, and then %v", err, flushed)
	}
	return e
}

func TestARefusedItemHasItsDetails(t *testing.T) {
	daemon := startWith(t, "[limits]\nmax_message_bytes = 500000\nmax_outbox_bytes = 2000000\nmax_peer_bytes = 2000000\n")
	node := dial(t, daemon)
	ctx := within(t)
	e := refusal(t, node, "nobody", p2pnode.Message{})
	if e.Code != codes.NotFound || e.Reason != "PEER_UNKNOWN" {
		t.Fatalf("%#v", e)
	}
	e = refusal(t, node, node.PeerID(), p2pnode.Message{Payload: make([]byte, 500_001)})
	if e.Code != codes.InvalidArgument || e.Field != "message.payload" {
		t.Fatalf("%#v", e)
	}
	_, err := node.AddPeer(ctx, stranger)
	must(t, err)
	large := p2pnode.Message{Payload: make([]byte, 450_000)}
	sender := node.NewSender(ctx)
	for range 5 {
		_, err = sender.Send(ctx, stranger, large)
		must(t, err)
	}
	if !errors.As(sender.Close(), &e) || e.Code != codes.ResourceExhausted || e.Limit == "" || e.Owner != "LOCAL" ||
		e.Max != 2000000 || e.Used == 0 || e.Reason == "" {
		t.Fatalf("%#v", e)
	}
	// As of a call.
	_, err = node.Send(ctx, stranger, large)
	called := (*p2pnode.Error)(nil)
	if !errors.As(err, &called) || called.Reason != e.Reason || called.Limit != e.Limit || called.Max != e.Max {
		t.Fatalf("%#v, but %#v", e, called)
	}
}

func TestALimitNamesItself(t *testing.T) {
	daemon := startWith(t, "[limits]\nmax_outbox_bytes = 2000000\nmax_peer_bytes = 2000000\n")
	node := dial(t, daemon)
	ctx := within(t)
	_, err := node.AddPeer(ctx, stranger)
	must(t, err)
	message := p2pnode.Message{Payload: make([]byte, 500_000)}
	for range 5 {
		if _, err = node.Send(ctx, stranger, message, p2pnode.UntilQueued()); err != nil {
			break
		}
	}
	e := (*p2pnode.Error)(nil)
	if !errors.As(err, &e) || !errors.Is(err, p2pnode.ErrResourceExhausted) || e.Limit == "" || e.Owner != "LOCAL" ||
		e.Max != 2000000 || e.Used == 0 {
		t.Fatalf("%#v", err)
	}
}

func TestLargeMessagesFollowTheDaemonsLimit(t *testing.T) {
	node := dial(t, startWith(t, "[limits]\nmax_message_bytes = 8388608\n"))
	ctx := within(t)
	message := p2pnode.Message{Payload: make([]byte, 8<<20)}
	sent, err := node.Send(ctx, node.PeerID(), message)
	must(t, err)
	if sent.State != p2pnode.StateStored {
		t.Fatalf("sent: %+v", sent)
	}
	sender := node.NewSender(ctx)
	_, err = sender.Send(ctx, node.PeerID(), message)
	must(t, err)
	must(t, sender.Close())
	for _, payload := range take(t, node, "", 2) {
		if len(payload) != 8<<20 {
			t.Fatalf("got %d bytes", len(payload))
		}
	}
	if _, err := sender.Send(ctx, node.PeerID(), p2pnode.Message{Payload: make([]byte, 16<<20)}); err == nil {
		t.Fatal("taken")
	}
}

func TestASocketOfOthersIsAnError(t *testing.T) {
	daemon := start(t)
	must(t, os.Chmod(daemon.Socket(), 0))
	binary := build(t, "internal/receiver")
	command := exec.CommandContext(within(t), binary, "-socket", daemon.Socket(), "-file", os.DevNull)
	if os.Getuid() == 0 {
		// Root may open every socket.
		nobody(t, command, filepath.Dir(daemon.Socket()), filepath.Dir(binary))
	}
	out, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "add this user to the group p2p-node") {
		t.Fatalf("%v: %s", err, out)
	}
}

// nobody makes a command run without rights, but that it may look into
// temporary directories.
func nobody(t *testing.T, command *exec.Cmd, directories ...string) {
	t.Helper()
	for _, directory := range directories {
		for ; directory != filepath.Clean(os.TempDir()); directory = filepath.Dir(directory) {
			must(t, os.Chmod(directory, 0o755))
		}
	}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}
