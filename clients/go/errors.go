package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/p2p-node/p2p-node/clients/go/p2pv1"
)

// domain marks error details as the daemon's own.
const domain = "p2p-node"

// Errors by the code of their status: errors.Is(err, ErrNotFound).
var (
	// ErrInvalidArgument: the request can never work as it is.
	ErrInvalidArgument error = codeError(codes.InvalidArgument)
	// ErrNotFound: no such peer, message or consumer.
	ErrNotFound error = codeError(codes.NotFound)
	// ErrAlreadyExists: an id reused for other content, a name taken, a
	// consumer in use.
	ErrAlreadyExists error = codeError(codes.AlreadyExists)
	// ErrFailedPrecondition: not in the present state: a blocked peer, say.
	ErrFailedPrecondition error = codeError(codes.FailedPrecondition)
	// ErrResourceExhausted: a limit; see [Error.Limit].
	ErrResourceExhausted error = codeError(codes.ResourceExhausted)
	// ErrUnavailable: the peer cannot be reached now.
	ErrUnavailable error = codeError(codes.Unavailable)
	// ErrDeadlineExceeded: the peer did not answer in time, or the context's
	// deadline passed.
	ErrDeadlineExceeded error = codeError(codes.DeadlineExceeded)
	// ErrDataLoss: the store, or a message in it, is damaged.
	ErrDataLoss error = codeError(codes.DataLoss)
	// ErrInternal: the store failed otherwise.
	ErrInternal error = codeError(codes.Internal)
	// ErrUnimplemented: the daemon is older than this package.
	ErrUnimplemented error = codeError(codes.Unimplemented)
)

// Errors of this package.
var (
	// ErrNoDaemon: no daemon answers at the socket.
	ErrNoDaemon = errors.New("no daemon at the socket")
	// ErrClosed: the Node or the Sender was closed.
	ErrClosed = errors.New("closed")
	// ErrAmbiguous: more than one peer fits; name the peer instead.
	ErrAmbiguous = errors.New("more than one peer fits")
)

// codeError is a status code as an error to compare with.
type codeError codes.Code

func (c codeError) Error() string { return codes.Code(c).String() }

// Error is what the daemon said, or why it could not be asked.
type Error struct {
	// Code of the gRPC status.
	Code codes.Code
	// Message names what is wrong and the remedy.
	Message string
	// Reason is a word for programs, such as PEER_NOT_IN_BOOK; may be empty.
	Reason string
	// Field of the request that is wrong; may be empty.
	Field string
	// Limit that was hit; may be empty.
	Limit string
	// Owner of the limit: LOCAL or REMOTE.
	Owner string
	// Used and Max of the limit; 0 if not known.
	Used, Max uint64
	// Metadata is all that came with the reason.
	Metadata map[string]string

	status *status.Status
	causes []error
}

// Error gives the code and the message.
func (e *Error) Error() string {
	return fmt.Sprintf("%s (%s)", e.Message, e.Code)
}

// GRPCStatus is what status.FromError finds.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Is compares with the sentinel errors of this package.
func (e *Error) Is(target error) bool {
	code, ok := target.(codeError)
	return ok && codes.Code(code) == e.Code
}

// Unwrap gives the context's error when that ended the call, and ErrNoDaemon
// when there was none.
func (e *Error) Unwrap() []error { return e.causes }

// asError makes an *Error of whatever gRPC returned; nil stays nil.
func asError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if known := (*Error)(nil); errors.As(err, &known) {
		return err
	}
	st, _ := status.FromError(err)
	e := &Error{Code: st.Code(), Message: st.Message(), status: st}
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			e.Reason, e.Metadata = detail.Reason, detail.Metadata
			e.Limit, e.Owner = detail.Metadata["limit"], detail.Metadata["owner"]
			e.Used, _ = strconv.ParseUint(detail.Metadata["used"], 10, 64)
			e.Max, _ = strconv.ParseUint(detail.Metadata["max"], 10, 64)
		case *errdetails.BadRequest:
			if fields := detail.FieldViolations; len(fields) > 0 {
				e.Field = fields[0].Field
			}
		}
	}
	if cause := ctx.Err(); cause != nil && (e.Code == codes.Canceled || e.Code == codes.DeadlineExceeded) {
		e.causes = []error{cause}
	}
	return e
}

// refused makes an error of the receipt of an item that was not taken.
func refused(answer *p2pv1.Receipt) error {
	told := &spb.Status{}
	if err := proto.Unmarshal(answer.GetDetails(), told); err != nil || told.GetCode() != answer.GetCode() {
		told = &spb.Status{Code: answer.GetCode(), Message: answer.GetError()}
	}
	return asError(context.Background(), status.ErrorProto(told))
}

// newError makes an error of this side.
func newError(code codes.Code, message string, causes ...error) *Error {
	return &Error{Code: code, Message: message, status: status.New(code, message), causes: causes}
}

// ended is the error of a call whose context ended while there was no daemon.
func ended(ctx context.Context, path string, last error) *Error {
	code := codes.Canceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	text := fmt.Sprintf("no daemon answers at %s: %s; start it, or name its socket in P2P_NODE_SOCKET", path, plain(last))
	return newError(code, text, ctx.Err(), ErrNoDaemon)
}

// plain is an error's text without gRPC's frame around it.
func plain(err error) string {
	st, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	text := st.Message()
	if _, inner, found := strings.Cut(text, "transport: "); found {
		return strings.TrimSuffix(inner, `"`)
	}
	return text
}

// lost tells an answer of the daemon from the loss of the connection to it,
// and from a daemon that is going: both pass.
func lost(err error) bool {
	if errors.Is(err, io.EOF) {
		return true
	}
	st, ok := status.FromError(err)
	if !ok {
		return false
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == domain {
			return info.Reason == "SHUTTING_DOWN"
		}
	}
	switch st.Code() {
	case codes.Unavailable, codes.Canceled:
		return true
	case codes.Internal, codes.Unknown:
		// What gRPC makes of a stream that was cut off.
		return strings.Contains(st.Message(), "RST_STREAM") || strings.Contains(st.Message(), "without sending trailers") ||
			strings.Contains(st.Message(), "h2 protocol error")
	}
	return false
}
