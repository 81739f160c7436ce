"""The way out: one SendStream, batches, and the same again after a crash."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

import grpc.aio

from ._connection import Backoff, Connection, StreamCall, log
from .errors import (
    Closed,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    P2PError,
    Unavailable,
    daemon_lost,
    from_receipt,
)
from .v1 import message_pb2 as pb

#: Items of a frame; enough that a frame's own cost vanishes.
_MAX_ITEMS = 512
#: Bytes of a frame, unless one item alone has more.
_MAX_BYTES = 1 << 20
#: Messages under way, for each of the two ways to wait. The daemon reads on
#: while fewer than 16,384 of a stream are.
_WINDOW_ITEMS = 4096
#: And their bytes, unless one alone has more.
_WINDOW_BYTES = 8 << 20
#: Messages that nobody waits for any more, but the daemon's stream does. Past
#: that the stream is made anew.
_MAX_ABANDONED = 4096
#: What a frame adds to an item, at most.
_ITEM_OVERHEAD = 64


class Item:
    """A message on its way."""

    __slots__ = ("future", "request", "size", "written")

    def __init__(self, request: pb.SendRequest, size: int, future: asyncio.Future[pb.SendResponse]) -> None:
        self.request = request
        self.size = size
        self.future = future
        self.written = False


class _Window:
    """Room for messages under way; who waits for some is served in order."""

    def __init__(self) -> None:
        self._items, self._bytes = 0, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_enter(self, size: int) -> bool:
        if self._waiting or not self._fits(size):
            return False
        self._add(size)
        return True

    async def enter(self, size: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(size)
            raise

    def leave(self, size: int) -> None:
        self._items -= 1
        self._bytes -= size
        while self._waiting and (self._waiting[0][1].cancelled() or self._fits(self._waiting[0][0])):
            size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._add(size)
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self._items == 0 or (self._items < _WINDOW_ITEMS and self._bytes + size <= _WINDOW_BYTES)

    def _add(self, size: int) -> None:
        self._items += 1
        self._bytes += size


class Sender:
    """Sends what is given to it, in that order, until it is on a disk."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: deque[Item] = deque()
        self._under_way: dict[int, Item] = {}
        self._windows = {pb.WAIT_QUEUED: _Window(), pb.WAIT_STORED: _Window()}
        self._abandoned = 0
        self._next_ref = 1
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._answered = False

    async def put(self, request: pb.SendRequest) -> asyncio.Future[pb.SendResponse]:
        """Takes a message once there is room; the future is its receipt."""
        size = request.ByteSize() + _ITEM_OVERHEAD
        try:
            self._check(request, size)
        except InvalidArgument:
            # The limits may have been raised since.
            await self._connection.refresh()
            self._check(request, size)
        window = self._windows[request.wait]
        if not window.try_enter(size):
            await window.enter(size)
        if self._closed:
            window.leave(size)
            raise Closed("this node was closed; make another")
        future: asyncio.Future[pb.SendResponse] = asyncio.get_running_loop().create_future()
        item = Item(request, size, future)
        future.add_done_callback(lambda _: self._ended(item, window))
        self._queue.append(item)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._over)
        return future

    async def close(self) -> None:
        """Ends the stream; what has no receipt fails."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(
            [*self._under_way.values(), *self._queue], Closed("this node was closed before the receipt came")
        )
        self._queue.clear()
        self._under_way.clear()

    def _over(self, task: asyncio.Task[None]) -> None:
        """Leaves nobody waiting if it ends by a mistake of its own."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("sending ended", exc_info=error)
        self._task = None
        self._fail([*self._under_way.values(), *self._queue], Internal(f"sending ended: {error!r}"))
        self._under_way.clear()
        self._queue.clear()

    def _check(self, request: pb.SendRequest, size: int) -> None:
        """Refuses what would end the whole stream, not only its own item."""
        most = self._connection.max_message_bytes
        if len(request.message.payload) > most:
            raise InvalidArgument(
                f"message.payload has {len(request.message.payload)} bytes; the limit is {most}: "
                "send it in parts, or raise max_message_bytes on both nodes",
                field="message.payload",
            )
        most = self._connection.max_frame_bytes
        if size > most:
            raise InvalidArgument(
                f"message has {size} bytes in all; the limit is {most}: shorten its other fields",
                field="message",
            )

    def _ended(self, item: Item, window: _Window) -> None:
        window.leave(item.size)
        if item.future.cancelled() and item.written:
            self._abandoned += 1
            self._wake.set()

    async def _run(self) -> None:
        failed, backoff = 0, Backoff()
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            try:
                generation = await self._connection.ready(after=failed)
            except P2PError as error:
                self._fail(self._queue, error)
                self._queue.clear()
                continue
            self._answered = False
            lost = await self._stream()
            failed = generation if lost else 0
            if self._answered:
                backoff.reset()
            elif lost:
                await backoff.wait()

    async def _stream(self) -> bool:
        """Sends over one stream until it ends. Returns whether the daemon died."""
        with self._connection.using() as stub:
            call = stub.SendStream()
            self._abandoned = 0
            reader = asyncio.create_task(self._read(call))
            reader.add_done_callback(lambda _: self._wake.set())
            try:
                while not reader.done() and self._abandoned < _MAX_ABANDONED:
                    items = self._take()
                    if items:
                        await call.write(pb.SendStreamRequest(items=items))
                    else:
                        self._wake.clear()
                        await self._wake.wait()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The stream is over; its reader knows why.
                await asyncio.wait([reader])
            finally:
                recycled = not reader.done()
                reader.cancel()
                await asyncio.wait([reader])
                call.cancel()
        if recycled:
            self._send_again()
            return False
        error = reader.result()
        if daemon_lost(error):
            self._send_again()
            return True
        self._fail(self._under_way.values(), error)
        self._under_way.clear()
        return False

    def _take(self) -> list[pb.SendItem]:
        """The next frame."""
        items: list[pb.SendItem] = []
        room = min(_MAX_BYTES, self._connection.max_frame_bytes)
        while self._queue and len(items) < _MAX_ITEMS:
            item = self._queue[0]
            if item.size > room and items:
                break
            self._queue.popleft()
            if item.future.done():
                continue
            room -= item.size
            item.written = True
            self._under_way[self._next_ref] = item
            items.append(pb.SendItem(ref=self._next_ref, request=item.request))
            self._next_ref += 1
        return items

    async def _read(self, call: StreamCall[pb.SendStreamResponse]) -> P2PError:
        """Hands out receipts; returns why the stream ended."""
        try:
            while True:
                frame = await self._connection.read(call, "SendStream")
                self._answered = True
                for receipt in frame.receipts.receipts:
                    item = self._under_way.pop(receipt.ref, None)
                    if item is None or item.future.done():
                        continue
                    if receipt.code:
                        item.future.set_exception(from_receipt(receipt))
                    else:
                        item.future.set_result(receipt.response)
        except P2PError as error:
            return error

    def _send_again(self) -> None:
        """Puts what has no receipt back to the front; the ids make that safe."""
        for item in reversed(self._under_way.values()):
            if item.future.done():
                continue
            if item.request.ephemeral:
                item.future.set_exception(
                    Unavailable("the stream broke off; the ephemeral message may or may not have arrived")
                )
            else:
                self._queue.appendleft(item)
        self._under_way.clear()

    @staticmethod
    def _fail(items: Iterable[Item], error: P2PError) -> None:
        for item in list(items):
            if not item.future.done():
                item.future.set_exception(error)


async def receipt(sender: Sender, request: pb.SendRequest, timeout: float | None) -> pb.SendResponse:
    """Sends and waits for the receipt, for at most `timeout` seconds."""
    if timeout is None:
        return await (await sender.put(request))
    try:
        return await asyncio.wait_for(_receipt(sender, request), timeout)
    except asyncio.TimeoutError:
        raise DeadlineExceeded(
            f"no receipt for message {request.message.id} within {timeout} s; it may have been taken: "
            "ask get_message, or send it again under the same id",
            metadata={"id": request.message.id},
        ) from None


async def _receipt(sender: Sender, request: pb.SendRequest) -> pb.SendResponse:
    return await (await sender.put(request))
