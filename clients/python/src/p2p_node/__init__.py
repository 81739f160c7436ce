"""Durable messages between peers: the client of the p2p-node daemon.

This is the asyncio face; `p2p_node.blocking` has the same names for programs
without asyncio.
"""

from ._connection import find_socket
from ._messages import Messages
from .daemon import Daemon
from .errors import (
    AlreadyExists,
    Closed,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    OutOfRange,
    P2PError,
    PermissionDenied,
    SeveralServers,
    Unavailable,
    Unimplemented,
)
from .message import (
    Body,
    ChangeCause,
    Message,
    MessageState,
    Reason,
    ReceivedMessage,
    Route,
    Sent,
    Trust,
)
from .node import Node
from .peers import Connected, Invitation, Joined, Peer, PeerChange, Pong, Removed, SentMessage
from .roles import P2PClient, P2PServer

__all__ = [
    "AlreadyExists",
    "Body",
    "ChangeCause",
    "Closed",
    "Connected",
    "Daemon",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "Invitation",
    "Joined",
    "LimitExceeded",
    "Message",
    "MessageState",
    "Messages",
    "Node",
    "NotFound",
    "OutOfRange",
    "P2PClient",
    "P2PError",
    "P2PServer",
    "Peer",
    "PeerChange",
    "PermissionDenied",
    "Pong",
    "Reason",
    "ReceivedMessage",
    "Removed",
    "Route",
    "Sent",
    "SentMessage",
    "SeveralServers",
    "Trust",
    "Unavailable",
    "Unimplemented",
    "find_socket",
]
