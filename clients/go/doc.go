// Package p2pnode talks to p2p-node, a daemon that exchanges messages with
// peers: durable, in order, wherever the peers are.
//
//	node, err := p2pnode.Dial(ctx)
//	sent, err := node.Send(ctx, "pi", p2pnode.Message{Payload: []byte("hello")})
//	for delivery, err := range node.Messages(ctx, "") {
//		fmt.Println(delivery.From, string(delivery.Payload), err)
//	}
//
// # Restarts of the daemon
//
// The daemon may be down when a program starts, and be restarted at any time.
// Calls wait for it until their context ends, iterators and senders take up
// where they were, and a line in the log (see [WithLogger]) tells both. Give a
// context with a deadline to what shall not wait for ever.
//
// # Errors
//
// An error that the daemon gave is an [*Error]: it unwraps to its gRPC status
// (status.FromError, status.Code), is one of the sentinel errors such as
// [ErrNotFound] (errors.Is), and says which limit was hit. Its text names the
// remedy.
//
// # Stubs
//
// What this package leaves out is in the generated package p2pv1, see
// [Node.API]. The comments of proto/message.proto are the reference of both.
package p2pnode
