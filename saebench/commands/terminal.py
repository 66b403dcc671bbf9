"""Standard streams that cannot end a command: closed, full or broken stderr, and encodings without our characters."""

import io
import os
import sys
from contextlib import suppress


class _Heedless(io.RawIOBase):
    """Writes to a file descriptor; messages that cannot be written are dropped."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]  # bytes, or a buffer of them
        with suppress(OSError):
            return os.write(self.descriptor, view)
        return view.nbytes


def guard_streams() -> None:
    """Keep a run alive whatever happens to its messages; nothing changes where streams were replaced, as in tests.

    A closed descriptor among the first three is opened on the null device: the next file that is opened would take its number,
    and a library's message to "stderr" would land in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    if sys.stderr is sys.__stderr__:
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Heedless(2)), encoding, errors="backslashreplace", line_buffering=True
        )
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
