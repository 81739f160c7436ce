"""What can go wrong, by gRPC status, with the details that the daemon gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from .v1 import details_pb2

if TYPE_CHECKING:
    from .v1.message_pb2 import Receipt

_DOMAIN = "p2p-node"
_DETAILS_KEY = "grpc-status-details-bin"
#: What gRPC for Python makes of a write on a connection that broke, whatever
#: the stream's own status was.
_BROKEN_WRITE = "Internal error from Core"


class P2PError(Exception):
    """The daemon, or the way to it, refused or failed.

    `str()` of it says what is wrong and the remedy.
    """

    #: The gRPC status; each subclass has its own.
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field: str = "",
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        #: What happened, for programs: "ALIAS_TAKEN", say. Empty if unknown.
        self.reason = reason
        #: Facts that belong to the reason.
        self.metadata: dict[str, str] = dict(metadata or {})
        #: The field of the request that is wrong, if one is.
        self.field = field
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message

    def _number(self, name: str) -> int | None:
        text = self.metadata.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else None


class InvalidArgument(P2PError):
    """The request can never work as it is; `field` names the culprit."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(P2PError):
    """No such peer, message or consumer."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(P2PError):
    """An id used before for other content, or a name that is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS

    @property
    def pid(self) -> int | None:
        """The process that holds the consumer, if it is about one."""
        return self._number("pid")


class FailedPrecondition(P2PError):
    """Not in the present state: the peer is blocked, say."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class SeveralServers(FailedPrecondition):
    """More than one trusted peer announces the role that was looked for."""

    def __init__(self, message: str, servers: list[str]) -> None:
        super().__init__(message, reason="SEVERAL_SERVERS")
        #: Their peer ids.
        self.servers = servers


class PermissionDenied(P2PError):
    """This user may not open the daemon's socket."""

    code = grpc.StatusCode.PERMISSION_DENIED


class LimitExceeded(P2PError):
    """A limit is reached. What is not known of it is None."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    @property
    def limit(self) -> str | None:
        """Its name."""
        return self.metadata.get("limit")

    @property
    def owner(self) -> str | None:
        """Whose it is: "LOCAL" or "REMOTE"."""
        return self.metadata.get("owner")

    @property
    def used(self) -> int | None:
        """How much of it is used."""
        return self._number("used")

    @property
    def max(self) -> int | None:
        """How much there is."""
        return self._number("max")


class OutOfRange(P2PError):
    """A gRPC frame larger than the daemon takes."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Unavailable(P2PError):
    """The peer cannot be reached now, or the daemon is not there."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(P2PError, TimeoutError):
    """It took longer than the time given."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class DataLoss(P2PError):
    """The daemon's store, or a message in it, is damaged."""

    code = grpc.StatusCode.DATA_LOSS


class Internal(P2PError):
    """The daemon failed otherwise."""

    code = grpc.StatusCode.INTERNAL


class Unimplemented(P2PError):
    """The daemon is older than this package and lacks the call."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Closed(P2PError):
    """The node object was closed."""

    code = grpc.StatusCode.CANCELLED


_BY_CODE: dict[grpc.StatusCode, type[P2PError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        PermissionDenied,
        LimitExceeded,
        OutOfRange,
        Unavailable,
        DeadlineExceeded,
        DataLoss,
        Internal,
        Unimplemented,
    )
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc(error: grpc.RpcError, doing: str = "") -> P2PError:
    """The error that a failed call means."""
    code, text = grpc.StatusCode.UNKNOWN, str(error)
    details = b""
    # Both faces of gRPC have these methods; its base class does not.
    call: Any = error
    if hasattr(call, "code") and hasattr(call, "details"):
        code, text = call.code(), call.details() or code.name
        for key, value in call.trailing_metadata() or ():
            if key == _DETAILS_KEY and isinstance(value, bytes):
                details = value
    if code == grpc.StatusCode.UNIMPLEMENTED:
        text = (
            f"the daemon does not know the call {doing or 'made'}; it is older than this package: update it"
        )
    return _build(code, text, details)


def from_receipt(receipt: Receipt) -> P2PError:
    """The error that a refused item of a SendStream means."""
    return _build(_BY_NUMBER.get(receipt.code, grpc.StatusCode.UNKNOWN), receipt.error, receipt.details)


def _build(code: grpc.StatusCode, text: str, details: bytes) -> P2PError:
    reason, metadata, field = _read(details)
    kind = _BY_CODE.get(code, P2PError)
    return kind(text, reason=reason, metadata=metadata, field=field, code=code)


def _read(details: bytes) -> tuple[str, dict[str, str], str]:
    """Reason, facts and field of a google.rpc.Status."""
    reason, metadata, field = "", dict[str, str](), ""
    try:
        status = details_pb2.Status.FromString(details)
        for detail in status.details:
            kind = detail.type_url.rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                info = details_pb2.ErrorInfo.FromString(detail.value)
                if info.domain == _DOMAIN:
                    reason, metadata = info.reason, dict(info.metadata)
            elif kind == "google.rpc.BadRequest":
                bad = details_pb2.BadRequest.FromString(detail.value)
                field = next((violation.field for violation in bad.field_violations), "")
    except DecodeError:
        pass  # The status and its text stand without them.
    return reason, metadata, field


def daemon_lost(error: P2PError) -> bool:
    """Whether the daemon went away, rather than answered.

    What the daemon itself calls UNAVAILABLE comes with a reason.
    """
    if error.code == grpc.StatusCode.INTERNAL and error.message == _BROKEN_WRITE:
        return True
    return error.code == grpc.StatusCode.UNAVAILABLE and error.reason in ("", "SHUTTING_DOWN")
