package p2pnode

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

const (
	// HTTP/2 windows, as the daemon's: those of gRPC cost a third of the
	// throughput of large messages.
	streamWindow     = 4 << 20
	connectionWindow = 8 << 20
	// Between two looks for the daemon: the first and the longest.
	firstWait   = 20 * time.Millisecond
	longestWait = time.Second
	// A socket that was just made may not have its mode yet.
	permissionGrace = time.Second
	// gRPC's own default, until Status tells the daemon's.
	defaultFrame = 4 << 20
)

// Node is a connection to the daemon. It is safe for concurrent use.
type Node struct {
	log    *slog.Logger
	socket *socket
	conn   *grpc.ClientConn
	api    p2pv1.P2PClient
	peerID string
	// Largest gRPC frame of the daemon.
	frame atomic.Int64
	// Ends when the Node is closed.
	life  context.Context
	close context.CancelFunc
	// Goroutines that Close waits for.
	tasks sync.WaitGroup

	mu        sync.Mutex
	downSince time.Time
	// What loops have done and the daemon could not be told: for the next
	// loop on that consumer.
	untold map[consumer]place
}

// Option changes how [Dial] connects.
type Option func(*dialing)

type dialing struct {
	socket string
	log    *slog.Logger
	noWait bool
}

// WithSocket names the daemon's socket; without it see [SocketPath].
func WithSocket(path string) Option {
	return func(d *dialing) { d.socket = path }
}

// WithLogger sets where this package says that it waits for the daemon or for
// a peer, and that the wait is over; without it that is [slog.Default].
func WithLogger(log *slog.Logger) Option {
	return func(d *dialing) { d.log = log }
}

// WithoutWaiting makes Dial fail with [ErrNoDaemon] when no daemon answers.
// Later calls wait as ever.
func WithoutWaiting() Option {
	return func(d *dialing) { d.noWait = true }
}

// Dial connects to the daemon, and waits for it until ctx ends: the Node
// itself outlives ctx. End it with Close.
//
// Errors: ctx ended ([ErrNoDaemon]), or this user may not open the socket
// (fs.ErrPermission).
func Dial(ctx context.Context, options ...Option) (*Node, error) {
	with := dialing{log: slog.Default()}
	for _, option := range options {
		option(&with)
	}
	n := &Node{log: with.log, socket: &socket{fixed: with.socket}, untold: map[consumer]place{}}
	n.frame.Store(defaultFrame)
	conn, err := grpc.NewClient("passthrough:///p2p-node",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(n.socket.dial),
		// The daemon takes a plain host name only.
		grpc.WithAuthority("localhost"),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstWait, Multiplier: 2, Jitter: 0.2, MaxDelay: longestWait},
			MinConnectTimeout: 5 * time.Second,
		}),
		// Calls wait in this package, which tells about it.
		grpc.WithDisableServiceConfig(),
		grpc.WithChainUnaryInterceptor(n.limitUnary),
		grpc.WithChainStreamInterceptor(n.limitStream),
	)
	if err != nil {
		return nil, err
	}
	n.conn, n.api = conn, p2pv1.NewP2PClient(conn)
	n.life, n.close = context.WithCancel(context.Background())
	if with.noWait {
		if _, err := n.api.Status(ctx, &p2pv1.StatusRequest{}); err != nil && lost(err) {
			n.Close()
			text := fmt.Sprintf("no daemon answers at %s: %s", n.socket.path(), plain(err))
			return nil, newError(codes.Unavailable, text, ErrNoDaemon)
		}
	}
	status, err := n.Status(ctx)
	if err != nil {
		n.Close()
		return nil, err
	}
	n.peerID = status.PeerId
	return n, nil
}

// Close ends the connection and all that uses it: iterators, senders and
// presence. What was sent and is on disk goes on its way.
func (n *Node) Close() error {
	n.mu.Lock()
	n.close()
	n.mu.Unlock()
	n.tasks.Wait()
	return n.conn.Close()
}

// spawn starts a task that Close waits for; false when it is too late.
func (n *Node) spawn(task func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life.Err() != nil {
		return false
	}
	n.tasks.Add(1)
	go func() {
		defer n.tasks.Done()
		task()
	}()
	return true
}

// API gives the generated stubs on this connection, for what this package
// leaves out. Its calls do not wait for the daemon and its errors are gRPC's.
func (n *Node) API() p2pv1.P2PClient { return n.api }

// PeerID of the daemon's own node.
func (n *Node) PeerID() string { return n.peerID }

// Socket is where the daemon is looked for.
func (n *Node) Socket() string { return n.socket.path() }

// NetCheck tells how this node can be reached from outside, what is wrong, and
// what cures it.
func (n *Node) NetCheck(ctx context.Context) (*NetCheck, error) {
	return call(ctx, n, n.api.NetCheck, &p2pv1.NetCheckRequest{})
}

// Status asks for the daemon's own condition.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	status, err := call(ctx, n, n.api.Status, &p2pv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	if frame := status.GetLimits().GetMaxFrameBytes(); frame > 0 {
		n.frame.Store(int64(min(frame, 1<<30)))
	}
	return status, nil
}

func (n *Node) limitUnary(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	limit := grpc.MaxCallRecvMsgSize(int(n.frame.Load()))
	return invoke(ctx, method, request, reply, cc, append([]grpc.CallOption{limit}, options...)...)
}

func (n *Node) limitStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	limit := grpc.MaxCallRecvMsgSize(int(n.frame.Load()))
	return open(ctx, desc, cc, method, append([]grpc.CallOption{limit}, options...)...)
}

// bound is ctx that also ends when the Node is closed.
func (n *Node) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(n.life, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// failed is the error of what ended with ctx, or with the Node.
func (n *Node) failed(ctx context.Context, err error) error {
	if n.life.Err() != nil {
		return newError(codes.Canceled, "the Node was closed", ErrClosed)
	}
	return asError(ctx, err)
}

// call makes a call that can be repeated without harm, until the daemon
// answers or ctx ends.
func call[Request, Response any](
	ctx context.Context, n *Node,
	method func(context.Context, *Request, ...grpc.CallOption) (*Response, error), request *Request,
) (*Response, error) {
	var wait waiting
	for {
		response, err := method(ctx, request)
		if err == nil {
			n.answered()
			return response, nil
		}
		if ctx.Err() != nil || !lost(err) {
			if ctx.Err() != nil && lost(err) {
				return nil, ended(ctx, n.socket.path(), err)
			}
			return nil, n.failed(ctx, err)
		}
		if err := wait.next(ctx, n, err); err != nil {
			return nil, err
		}
	}
}

// waiting is one call's wait for the daemon.
type waiting struct {
	pause     time.Duration
	forbidden time.Time
}

// next tells that the daemon is missed, and pauses before the next attempt.
func (w *waiting) next(ctx context.Context, n *Node, cause error) error {
	if n.life.Err() != nil {
		// What was lost is the connection that Close ended.
		return newError(codes.Canceled, "the Node was closed", ErrClosed)
	}
	if !n.socket.forbidden() {
		w.forbidden = time.Time{}
	} else if w.forbidden.IsZero() {
		w.forbidden = time.Now()
	} else if time.Since(w.forbidden) > permissionGrace {
		text := fmt.Sprintf("no permission on the socket %s: add this user to the group p2p-node and log in again", n.socket.path())
		return newError(codes.PermissionDenied, text, fs.ErrPermission)
	}
	n.missed(cause)
	w.pause = min(max(2*w.pause, firstWait), longestWait)
	timer := time.NewTimer(w.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ended(ctx, n.socket.path(), cause)
	case <-n.life.Done():
		return newError(codes.Canceled, "the Node was closed", ErrClosed)
	}
	n.conn.ResetConnectBackoff()
	return nil
}

// missed tells once that the daemon does not answer.
func (n *Node) missed(cause error) {
	n.mu.Lock()
	first := n.downSince.IsZero()
	if first {
		n.downSince = time.Now()
	}
	n.mu.Unlock()
	if first {
		n.log.Warn("p2p-node: the daemon does not answer, waiting for it", "socket", n.socket.path(), "error", plain(cause))
	}
}

// answered tells that the daemon is back if it was missed.
func (n *Node) answered() {
	n.mu.Lock()
	since := n.downSince
	n.downSince = time.Time{}
	n.mu.Unlock()
	if !since.IsZero() {
		n.log.Info("p2p-node: the daemon answers", "socket", n.socket.path(), "after", time.Since(since).Round(time.Millisecond))
	}
}
