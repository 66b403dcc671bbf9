"""Bounds on a server's response: seconds in all and bytes, before and after decompression."""

import sys
import time
import zlib
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
# Bytes of one reply: 20 alternatives to each of 100,000 tokens take some 200 MB, and no request reserves a tenth of them.
REPLY_BYTES = 64 * 2**20
# Bytes of a batch's file of results.
BATCH_BYTES = 2 * 2**30
_PIECE = 2**16


class TooLarge(Exception):
    """A response beyond the limit on bytes, or in an encoding whose size cannot be limited."""


class Overdue(Exception):
    """No complete response within the time limit."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call; the call is abandoned after the time limit.

    A timeout of the HTTP library limits each read, so a server that sends a byte now and then is never timed out.

    Raises:
        Overdue: no result yet.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:  # raised again in the waiting thread
            done.put((None, error))

    Thread(target=work, daemon=True).start()
    try:
        value, error = done.get(timeout=seconds)
    except Empty:
        raise Overdue(f"no complete response in {seconds:g} seconds") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def bound(response: Any, seconds: float, most: int) -> None:
    """Limit the body of an HTTP response that is not read yet; call it from a response hook of the HTTP client.

    Args:
        response: of httpx or httpx2.
        seconds: from now to the end of the body.
        most: bytes, compressed and decompressed.

    Raises:
        TooLarge: now or while the body is read.
        Overdue: while the body is read.
    """
    encodings = [e.strip().lower() for e in response.headers.get("content-encoding", "").split(",")]
    encodings = [e for e in encodings if e and e != "identity"]
    if len(encodings) > 1 or not set(encodings) <= {"gzip", "x-gzip", "deflate"}:
        raise TooLarge(f"content-encoding {', '.join(encodings)[:80]!r} was not accepted")
    if encodings:
        del response.headers["content-encoding"]
    # The base class of whichever library the SDK uses: the client accepts no other kind of stream.
    base = sys.modules[type(response).__module__.partition(".")[0]].SyncByteStream
    stream, deadline = response.stream, time.monotonic() + seconds

    class Bounded(base):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[bytes]:
            pieces = _decompressed(stream, most) if encodings else stream
            size = 0
            for piece in pieces:
                size += len(piece)
                if size > most:
                    raise TooLarge(f"the response is larger than {most:,} bytes")
                if time.monotonic() > deadline:
                    raise Overdue(f"no complete response in {seconds:g} seconds")
                yield piece

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()


def _decompressed(stream: Any, most: int) -> Iterator[bytes]:
    """A gzip or zlib stream in pieces of bounded size."""
    inflate, size = zlib.decompressobj(zlib.MAX_WBITS | 32), 0
    for piece in stream:
        size += len(piece)
        if size > most:
            raise TooLarge(f"the response is larger than {most:,} bytes")
        while piece and not inflate.eof:
            try:
                yield inflate.decompress(piece, _PIECE)
            except zlib.error as error:
                raise TooLarge(f"the response cannot be decompressed: {error}") from None
            piece = inflate.unconsumed_tail
    yield inflate.flush(_PIECE)
