package p2pnode

import (
	"context"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// SetPresence announces to trusted peers what this app is: roles, by which
// others find it ([Node.FindRole]), and a status text. It returns once that is
// in force, and keeps it so, over restarts of the daemon, until ctx ends or
// the Node is closed. To change it, call it anew and end the former ctx.
//
// Errors: [ErrInvalidArgument], [ErrResourceExhausted], ctx ended.
func (n *Node) SetPresence(ctx context.Context, text string, roles ...string) error {
	ctx, cancel := n.bound(ctx)
	first := make(chan error, 1)
	spawned := n.spawn(func() {
		defer cancel()
		n.announce(ctx, &p2pv1.SetPresenceRequest{Text: text, Roles: roles}, first)
	})
	if !spawned {
		cancel()
		return n.failed(ctx, nil)
	}
	return <-first
}

// announce keeps a stream open; first gets one answer.
func (n *Node) announce(ctx context.Context, request *p2pv1.SetPresenceRequest, first chan<- error) {
	var wait waiting
	inForce := false
	for {
		err := n.announceOnce(ctx, request, func() {
			wait = waiting{}
			if !inForce {
				inForce = true
				first <- nil
			}
		})
		if ctx.Err() == nil && lost(err) {
			err = wait.next(ctx, n, err)
		} else {
			err = n.failed(ctx, err)
		}
		switch {
		case err == nil:
		case !inForce:
			first <- err
			return
		default:
			if ctx.Err() == nil {
				n.log.Error("p2p-node: presence is not announced any more", "roles", request.Roles, "error", err)
			}
			return
		}
	}
}

func (n *Node) announceOnce(ctx context.Context, request *p2pv1.SetPresenceRequest, ready func()) error {
	if _, err := n.Status(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := n.api.SetPresence(ctx, request)
	if err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		ready()
	}
}
