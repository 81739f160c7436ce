"""The way in: a Listen for each consumer, and what its app did with it.

A `Subscription` belongs to a consumer. It reads ahead, remembers what was
handed to the app and not acknowledged, and acknowledges. A loop over it is a
`Messages`; the next loop goes on where that one was left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections import deque
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

import grpc.aio

from ._connection import Backoff, Connection, StreamCall, log
from .errors import AlreadyExists, Closed, FailedPrecondition, Internal, P2PError, daemon_lost, from_rpc
from .message import Received, Route
from .v1 import message_pb2 as pb

R = TypeVar("R", bound=Received)

#: Messages of a frame; the daemon also ends one at 1 MiB, or after one message.
_MAX_BATCH = 512
#: Frames read ahead: the next is read while one is worked on.
_READ_AHEAD = 3
#: Acknowledgements are put together for so long, in seconds, unless the app
#: has nothing else to do.
_ACK_PAUSE = 0.02
#: How long a consumer is kept for the next loop after one was left, in seconds.
_LINGER = 5.0
#: How long the daemon may take to notice that this process gave a consumer up.
_RELEASED_WITHIN = 3.0
#: How long a last acknowledgement may take, in seconds.
_LAST_ACK = 5.0


class Subscription(Generic[R]):
    """One consumer of one channel."""

    def __init__(
        self,
        connection: Connection,
        channel: str,
        consumer: str,
        message_type: type[R],
        ended: Callable[[Subscription[R]], None],
    ) -> None:
        self.channel = channel
        self.consumer = consumer
        self._connection = connection
        self._type = message_type
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        # Read ahead: frames as they came, and the one that is being unpacked.
        self._frames: deque[list[pb.Delivery]] = deque()
        self._open: deque[pb.Delivery] = deque()
        self._received = 0
        self._overlap = False
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._error: P2PError | None = None
        self._ack_error: P2PError | None = None
        # Handed to the app and not done, in order; and those to hand out again.
        self._unacked: deque[R] = deque()
        self._again: deque[R] = deque()
        self._fewer = asyncio.Event()
        # Cursors: of what is done, and of what the daemon knows to be done.
        self._acked = 0
        self._confirmed = 0
        # Which inbox the cursors are of, and the daemon's start that said so.
        self._inbox_id = ""
        self._instance_id = ""
        self._begun = asyncio.Event()
        self._to_ack = asyncio.Event()
        self._ack_now = asyncio.Event()
        self._ack_moved = asyncio.Event()
        self._holder: Callable[[], object | None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(self._over)
        self._acker: asyncio.Task[None] | None = None

    # The app's side

    def take(self, holder: object) -> None:
        """Makes `holder` the one loop over it.

        Raises:
            AlreadyExists: there is another one.

        """
        if self._holder is not None:
            if self._holder() is not None:
                raise AlreadyExists(
                    f"this program is in another loop over channel {self.channel!r} as consumer "
                    f"{self.consumer!r}; leave that first, or give another consumer name. A loop over "
                    "a variable that an exception left is in use while that exception is kept: drop it, "
                    "or use `async with node.messages() as inbox` (`with` in p2p_node.blocking)",
                    reason="CONSUMER_IN_USE",
                    metadata={"pid": str(os.getpid())},
                )
            self.leave()
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._holder = weakref.ref(holder)

    def leave(self, unseen: Collection[int] = ()) -> None:
        """The loop is over: what it did not finish comes again.

        `unseen` are the cursors of messages that its app never saw.
        """
        self._holder = None
        for message in self._unacked:
            if message.cursor in unseen:
                message._handed = False
        self._again = deque(message for message in self._unacked if not message._done)
        if self._linger is None:
            self._linger = self._loop.call_later(_LINGER, self._lapse)

    async def next(self, most: int) -> R:
        """The next message, as long as fewer than `most` are not acknowledged."""
        while True:
            if not self.has_room(most):
                await self._wait_for_acks(most)
            message = self.next_nowait()
            if message is not None:
                return message
            if self._error is not None:
                raise self._error
            self._ack_now.set()
            self._more.clear()
            await self._more.wait()

    def has_room(self, most: int) -> bool:
        """Whether fewer than `most` are handed out and not acknowledged."""
        return len(self._unacked) - len(self._again) < most

    def next_nowait(self) -> R | None:
        """The next message if it is here."""
        while self._again:
            message = self._again.popleft()
            if not message._done:
                if message._handed:
                    message.attempt += 1
                message._handed = True
                return message
        while not self._open:
            if not self._frames:
                return None
            self._open.extend(self._frames.popleft())
            self._room.set()
        message = self._unpack(self._open.popleft())
        message._handed = True
        if message.cursor:
            self._unacked.append(message)
        return message

    def done(self, message: Received) -> None:
        """Marks a message; acknowledges as far as all before it are done."""
        message._done = True
        unacked = self._unacked
        while unacked and unacked[0]._done:
            self._acked = unacked.popleft().cursor
            self._to_ack.set()
            self._fewer.set()
        if self._acked > self._confirmed and (self._acker is None or self._acker.done()):
            if self._ack_error is not None:
                return
            self._acker = asyncio.create_task(self._acknowledge())
            self._acker.add_done_callback(self._over)

    async def acked(self, cursor: int) -> None:
        """Waits until the daemon knows that this one is done, if it can be told."""
        while self._confirmed < cursor <= self._acked:
            if self._ack_error is not None:
                raise self._ack_error
            self._ack_now.set()
            self._ack_moved.clear()
            await self._ack_moved.wait()

    async def stop(self) -> None:
        """Acknowledges what is done and gives the consumer up."""
        if self._acked > self._confirmed:
            # Of an error that the daemon gave, the log has a line already.
            with contextlib.suppress(P2PError):
                try:
                    await asyncio.wait_for(self.acked(self._acked), _LAST_ACK)
                except asyncio.TimeoutError:
                    log.warning(
                        "channel %r, consumer %r: the daemon did not confirm within %g s that messages "
                        "up to cursor %d are done; those after cursor %d come again",
                        self.channel,
                        self.consumer,
                        _LAST_ACK,
                        self._acked,
                        self._confirmed,
                    )
        self._ack_error = Closed("this loop was closed, or its node; begin another")
        self._fail(self._ack_error)
        tasks = [task for task in (self._reader, self._acker) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _lapse(self) -> None:
        self._linger = None
        if self._acked > self._confirmed and self._error is None:
            # The daemon is away; what is done is told to it when it is back.
            self._linger = self._loop.call_later(_LINGER, self._lapse)
            return
        self._reader.cancel()
        self._fail(Closed("the consumer was given up, as no loop went on with it; begin another loop"))

    async def _wait_for_acks(self, most: int) -> None:
        log.warning(
            "channel %r: %d messages are handed out and not acknowledged; waiting until some are",
            self.channel,
            most,
        )
        while not self.has_room(most):
            if self._error is not None:
                raise self._error
            self._fewer.clear()
            await self._fewer.wait()

    def _unpack(self, delivery: pb.Delivery) -> R:
        message = delivery.message
        return self._type(
            message.payload,
            message.type,
            dict(message.metadata),
            message.id,
            message.timestamp,
            message.channel,
            message.reply_to,
            getattr(message, "from"),
            message.to,
            message.received_at,
            message.sequence,
            Route(message.route),
            delivery.cursor,
            delivery.attempt,
            self,
        )

    # The daemon's side

    def _fail(self, error: P2PError) -> None:
        """Ends it; the next message that is asked for is this error."""
        if self._error is None:
            self._error = error
            self._ended(self)
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        for event in (self._more, self._ack_moved, self._fewer, self._to_ack, self._begun):
            event.set()

    def _over(self, task: asyncio.Task[None]) -> None:
        """Leaves no loop waiting if a task ends by a mistake of its own."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("listening ended", exc_info=error)
            self._ack_error = Internal(f"listening ended: {error!r}")
            self._fail(self._ack_error)

    async def _read(self) -> None:
        failed, backoff, busy_since = 0, Backoff(longest=0.5), 0.0
        while True:
            try:
                failed = await self._connection.ready(after=failed)
                await self._listen(backoff)
            except AlreadyExists as error:
                # Of this very process: the daemon has not yet noticed that the
                # stream before is gone.
                now = self._loop.time()
                busy_since = busy_since or now
                if error.pid != os.getpid() or now - busy_since > _RELEASED_WITHIN:
                    return self._fail(error)
                failed -= 1
                await backoff.wait()
            except P2PError as error:
                if not daemon_lost(error):
                    return self._fail(error)
                self._instance_id = ""
                busy_since = 0.0
                await backoff.wait()

    async def _listen(self, backoff: Backoff) -> None:
        request = pb.ListenRequest(
            channel=self.channel, consumer=self.consumer, ack_mode=pb.ACK_MODE_MANUAL, max_batch=_MAX_BATCH
        )
        with self._connection.using() as stub:
            # What is confirmed while it opens, the daemon may not yet count in.
            confirmed = self._confirmed
            call: StreamCall[pb.ListenResponse] = stub.Listen(request)
            try:
                while True:
                    frame = await self._connection.read(call, "Listen")
                    if frame.HasField("ready"):
                        backoff.reset()
                        self._begin(frame.ready, confirmed)
                    else:
                        self._keep(frame.deliveries)
                    while len(self._frames) >= _READ_AHEAD:
                        self._room.clear()
                        await self._room.wait()
            finally:
                call.cancel()

    def _begin(self, ready: pb.ListenReady, confirmed: int) -> None:
        """A stream begins, after what the daemon knows to be acknowledged.

        `confirmed` is what it had confirmed before.
        """
        cursor, before = ready.cursor, self._inbox_id
        self._inbox_id, self._instance_id = ready.inbox_id, ready.instance_id
        if before and ready.inbox_id and ready.inbox_id != before:
            log.warning(
                "channel %r: the daemon's store was begun anew, and its messages with it; what came before "
                "cannot be acknowledged any more; going on at cursor %d",
                self.channel,
                cursor,
            )
            self._forget(cursor)
        elif cursor < confirmed:
            log.warning(
                "channel %r: the daemon's store is older than it was (a backup?); going back to cursor %d",
                self.channel,
                cursor,
            )
            self._forget(cursor)
        elif not self._received:
            self._acked = self._confirmed = self._received = cursor
        self._confirm(cursor)
        self._overlap = True
        self._begun.set()

    def _forget(self, cursor: int) -> None:
        """Begins anew at `cursor`: those before are of other messages."""
        self._frames.clear()
        self._open.clear()
        self._unacked.clear()
        self._again.clear()
        self._acked = self._confirmed = self._received = cursor
        self._fewer.set()

    def _keep(self, deliveries: pb.Deliveries) -> None:
        frame = list(deliveries.deliveries)
        if self._overlap:
            # After a break the daemon begins behind its cursor; the app may be
            # further on, with an acknowledgement that was lost.
            fresh = [each for each in frame if not 0 < each.cursor <= self._received]
            self._overlap = not any(each.cursor > self._received for each in fresh)
            frame = fresh
        for delivery in reversed(frame):
            if delivery.cursor:
                self._received = delivery.cursor
                break
        if frame:
            self._frames.append(frame)
            self._more.set()

    async def _acknowledge(self) -> None:
        backoff = Backoff(longest=0.5)
        while True:
            await self._to_ack.wait()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ack_now.wait(), _ACK_PAUSE)
            self._to_ack.clear()
            self._ack_now.clear()
            try:
                await self._same_daemon()
                # Only now: it may have been of another inbox before.
                cursor, inbox_id = self._acked, self._inbox_id
                if cursor > self._confirmed:
                    await self._tell_acked(cursor)
                    if inbox_id == self._inbox_id:
                        self._confirm(min(cursor, self._acked))
                    backoff.reset()
            except P2PError as error:
                if daemon_lost(error):
                    self._to_ack.set()
                    await backoff.wait()
                    continue
                log.warning("channel %r: what is done is not acknowledged: %s", self.channel, error)
                self._ack_error = error
                return self._fail(error)
            if self._error is not None and self._acked <= self._confirmed:
                break

    async def _same_daemon(self) -> None:
        """Waits until the daemon that is called is the one that the cursors are of.

        A cursor of another inbox would acknowledge what nobody has seen.

        Raises:
            FailedPrecondition: that cannot be found out any more.

        """
        if self._error is not None:
            # No stream tells of a restart.
            await self._connection.refresh()
        while self._instance_id != self._connection.status.instance_id:
            if self._error is not None:
                raise FailedPrecondition(
                    "the daemon was restarted after this loop had ended; what it did last comes again",
                    reason="DAEMON_RESTARTED",
                )
            if self._instance_id:
                # One of the two is behind.
                await self._connection.refresh()
                await asyncio.sleep(_ACK_PAUSE)
            else:
                self._begun.clear()
                await self._begun.wait()

    async def _tell_acked(self, cursor: int) -> None:
        request = pb.AckRequest(channel=self.channel, consumer=self.consumer, cursor=cursor)
        with self._connection.using() as stub:
            try:
                await stub.Ack(request)
            except grpc.aio.AioRpcError as failure:
                raise from_rpc(failure, "Ack") from None

    def _confirm(self, cursor: int) -> None:
        self._confirmed = max(self._confirmed, cursor)
        self._ack_moved.set()
