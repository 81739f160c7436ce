package p2pnode

import "context"

// RoleServer is the role that a [Server] announces and a [Client] looks for.
const RoleServer = "server"

// Server is a Node that announces the role "server".
type Server struct{ *Node }

// DialServer connects as [Dial] does and announces the role "server" until
// the Server is closed.
func DialServer(ctx context.Context, options ...Option) (*Server, error) {
	node, err := Dial(ctx, options...)
	if err != nil {
		return nil, err
	}
	announced := make(chan error, 1)
	// Presence is to outlive ctx, which bounds only the wait for it.
	go func() { announced <- node.SetPresence(node.life, "", RoleServer) }()
	select {
	case err = <-announced:
	case <-ctx.Done():
		err = ended(ctx, node.Socket(), ctx.Err())
	}
	if err != nil {
		node.Close()
		return nil, err
	}
	return &Server{Node: node}, nil
}

// Client is a Node that knows its server.
type Client struct {
	*Node
	// Server is the peer id of the server.
	Server string
}

// DialClient connects as [Dial] does and waits until exactly one trusted peer
// announces the role "server". Several: [ErrAmbiguous]; then use Dial, and
// name the peer.
func DialClient(ctx context.Context, options ...Option) (*Client, error) {
	node, err := Dial(ctx, options...)
	if err != nil {
		return nil, err
	}
	server, err := node.FindRole(ctx, RoleServer)
	if err != nil {
		node.Close()
		return nil, err
	}
	return &Client{Node: node, Server: server.PeerId}, nil
}

// Tell sends a message to the server; see [Node.Send].
func (c *Client) Tell(ctx context.Context, message Message, options ...SendOption) (Sent, error) {
	return c.Send(ctx, c.Server, message, options...)
}

// TellJSON sends v as JSON to the server; see [Node.SendJSON].
func (c *Client) TellJSON(ctx context.Context, channel string, v any, options ...SendOption) (Sent, error) {
	return c.SendJSON(ctx, c.Server, channel, v, options...)
}
