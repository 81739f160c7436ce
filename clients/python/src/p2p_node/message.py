"""Messages, and what becomes of them."""

from __future__ import annotations

import enum
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .v1 import message_pb2 as pb

#: Metadata key that says how a payload is written; MIME types.
CONTENT_TYPE = "content-type"
_JSON = "application/json"
_TEXT = "text/plain"


class _Enum(enum.IntEnum):
    """An enum of the API; numbers newer than this package become 0."""

    @classmethod
    def _missing_(cls, value: object) -> _Enum | None:
        return cls(0) if isinstance(value, int) and value != 0 else None


class Route(_Enum):
    """How a peer is reached."""

    UNSPECIFIED = 0
    LAN = 1
    DIRECT = 2
    RELAYED = 3
    NONE = 4


class MessageState(_Enum):
    """What became of a message, seen from its sender."""

    UNSPECIFIED = 0
    #: On this node's disk, not yet handed to a link.
    QUEUED = 1
    #: Handed to a link, not acknowledged.
    SENT = 2
    #: On the recipient's disk. (Ephemeral: handed to its app.) Final.
    STORED = 3
    #: Its time to live ran out before it was stored. Final.
    EXPIRED = 5
    #: Taken back before it was stored. Final.
    CANCELLED = 6
    #: Will never be stored. Final.
    REJECTED = 7


class Reason(_Enum):
    """Why a message is not getting on, or never will."""

    UNSPECIFIED = 0
    NOT_CONNECTED = 1
    UNTRUSTED = 2
    REMOTE_FULL = 3
    TOO_LARGE = 4
    NO_CONSUMER = 5
    UNREACHABLE = 6
    LINK_LOST = 7
    CONSUMER_BUSY = 8
    NOT_IN_BOOK = 9
    #: It waits for a direct path, and the peer is relayed.
    PATH = 10


class Trust(_Enum):
    """What the address book says of a peer."""

    UNSPECIFIED = 0
    KNOWN = 1
    TRUSTED = 2
    BLOCKED = 3


class ChangeCause(_Enum):
    """Why a row of `watch_peers` came."""

    #: As it was found when the watch began, or was taken up again.
    SNAPSHOT = 0
    ONLINE = 1
    OFFLINE = 2
    ROUTE = 3
    PRESENCE = 4
    BOOK = 5
    JOINED = 6
    LAN = 7
    REMOVED = 8


@dataclass(slots=True)
class Message:
    """A message; times are Unix milliseconds.

    To send one, set what you need of the first seven fields; the rest is for
    messages that came in.
    """

    payload: bytes = b""
    #: What the app calls this kind of message.
    type: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    #: Unique per recipient and channel; empty: one is made.
    id: str = ""
    #: When it was made; 0: now.
    timestamp: int = 0
    channel: str = ""
    #: Id of the message that this one answers.
    reply_to: str = ""
    #: Peer id of the sender, proven by the connection.
    sender: str = ""
    #: Peer id of the recipient.
    recipient: str = ""
    #: When this node stored it.
    received_at: int = 0
    #: Position in the order of (sender, recipient, channel).
    sequence: int = 0
    route: Route = Route.UNSPECIFIED

    def json(self) -> Any:
        """The payload, read as JSON.

        Raises:
            ValueError: it is none; the text names the message.

        """
        try:
            return json.loads(self.payload)
        except ValueError as error:
            raise ValueError(
                f"message {self.id} from {self.sender or 'here'} is not JSON: {error}"
            ) from error

    def text(self) -> str:
        """The payload, read as UTF-8; what is none becomes U+FFFD."""
        return self.payload.decode(errors="replace")


class _Inbox(Protocol):
    """Where a received message came from."""

    def done(self, message: Received) -> None: ...

    async def acked(self, cursor: int) -> None: ...


@dataclass(slots=True, eq=False)
class Received(Message):
    """What both faces' received messages have in common."""

    #: Position in this node's inbox of the channel; 0 for ephemeral ones.
    cursor: int = 0
    #: 1 the first time that this consumer gets it.
    attempt: int = 1
    _inbox: _Inbox | None = field(default=None, repr=False)
    _done: bool = field(default=False, repr=False)
    _handed: bool = field(default=False, repr=False)


@dataclass(slots=True, eq=False)
class ReceivedMessage(Received):
    """A message that came in."""

    async def ack(self) -> None:
        """Marks it as done; it is not delivered again.

        The consumer advances over it when all before it are done too. If they
        are, this returns when the daemon has that on disk.
        """
        if self._inbox is not None:
            self._inbox.done(self)
            await self._inbox.acked(self.cursor)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a message when `send_message` returned."""

    id: str
    state: MessageState
    #: The id was used for the same content before: nothing was sent anew. So
    #: too when this package itself had to ask twice, the daemon having died.
    duplicate: bool = False
    #: While it is not STORED: why.
    reason: Reason = Reason.UNSPECIFIED
    #: The same for a person.
    detail: str = ""
    sequence: int = 0


#: What can be sent: a Message, or what becomes the payload of one. A dict is
#: written as JSON.
Body = Message | Mapping[str, Any] | bytes | str


def new_id() -> str:
    """An id that nobody else makes, beginning with the time (as UUID version 7)."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def to_proto(body: Body, channel: str, kind: str, metadata: Mapping[str, str], reply_to: str) -> pb.Message:
    """The message of the API; what `body` leaves empty comes from the rest.

    Id and time are set here, so that it can be sent twice as the same.
    """
    if isinstance(body, Message):
        given = body
    elif isinstance(body, bytes | bytearray | memoryview):
        given = Message(payload=bytes(body))
    elif isinstance(body, str):
        given = Message(payload=body.encode(), metadata={CONTENT_TYPE: _TEXT})
    elif isinstance(body, Mapping):
        # Compact, and text as it is: it is for programs, in UTF-8.
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        given = Message(payload=text.encode(), metadata={CONTENT_TYPE: _JSON})
    else:
        raise TypeError(f"a {type(body).__name__} cannot be sent; give a dict, bytes, str or Message")
    return pb.Message(
        id=given.id or new_id(),
        type=given.type or kind,
        payload=given.payload,
        timestamp=given.timestamp or time.time_ns() // 1_000_000,
        metadata={**given.metadata, **metadata},
        channel=given.channel or channel,
        reply_to=given.reply_to or reply_to,
    )


def to_sent(response: pb.SendResponse) -> Sent:
    """The answer to a send."""
    return Sent(
        response.id,
        MessageState(response.state),
        response.duplicate,
        Reason(response.reason),
        response.detail,
        response.sequence,
    )
