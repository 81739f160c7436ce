"""What the daemon says of peers and of messages sent, as plain objects.

Field names are those of the API; its comments say more of each.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from google.protobuf.message import Message as ProtoMessage

from .message import ChangeCause, MessageState, Reason, Route, Trust

T = TypeVar("T")

#: How each field of a class is made, once worked out.
_MAKERS: dict[type[Any], dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the table of peers. Times are Unix milliseconds, 0 if never."""

    peer_id: str
    alias: str = ""
    trust: Trust = Trust.UNSPECIFIED
    pinned: bool = False
    in_book: bool = False
    online: bool = False
    route: Route = Route.UNSPECIFIED
    rtt_ms: float = 0.0
    last_seen: int = 0
    addresses: tuple[str, ...] = ()
    on_lan: bool = False
    agent: str = ""
    connections: int = 0
    queued: int = 0
    queued_bytes: int = 0
    sent: int = 0
    received: int = 0
    reason: Reason = Reason.UNSPECIFIED
    #: What it calls itself; not verified, and no name to send to.
    name: str = ""
    #: What its apps announce.
    roles: tuple[str, ...] = ()
    presence: str = ""
    online_since: int = 0
    #: With RELAYED: peer id of the relay.
    relay_id: str = ""


@dataclass(frozen=True, slots=True)
class PeerChange:
    """A change of a peer's row; with REMOVED only its peer id is set."""

    cause: ChangeCause
    peer: Peer
    #: With JOINED: which ticket.
    invite_id: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SentMessage:
    """What became of a message sent from here."""

    id: str
    peer: str
    channel: str
    state: MessageState
    reason: Reason = Reason.UNSPECIFIED
    detail: str = ""
    sequence: int = 0
    payload_bytes: int = 0
    queued_at: int = 0
    ttl_left_ms: int = 0
    #: EXPIRED or CANCELLED when it is not sent any more, but may have arrived.
    pending_outcome: MessageState = MessageState.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection to a peer."""

    peer_id: str
    route: Route
    address: str
    already_connected: bool = False


@dataclass(frozen=True, slots=True)
class Pong:
    """A round trip to a peer."""

    peer_id: str
    rtt_ms: float
    route: Route
    address: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A peer taken out of the address book, and how many messages wait for it."""

    peer_id: str
    queued: int = 0


@dataclass(frozen=True, slots=True)
class Invitation:
    """A ticket for one other node."""

    #: To hand over by a way that nobody else reads.
    ticket: str
    #: Names it in `PeerChange.invite_id`.
    invite_id: str
    expires_at: int
    addresses: tuple[str, ...]
    #: The other node must be on this local network.
    lan_only: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """The node whose ticket was redeemed."""

    peer_id: str
    alias: str
    route: Route
    address: str
    already_joined: bool = False


def convert(kind: type[T], message: ProtoMessage) -> T:
    """The message of the API as one of the above."""
    makers = _MAKERS.get(kind)
    if makers is None:
        makers = _MAKERS[kind] = _makers(kind)
    return kind(**{name: make(getattr(message, name)) for name, make in makers.items()})


def _makers(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)

    def maker(hint: Any) -> Any:
        if hint is Peer:
            return lambda value: convert(Peer, value)
        return tuple if typing.get_origin(hint) is tuple else hint

    return {field.name: maker(hints[field.name]) for field in fields(kind)}
