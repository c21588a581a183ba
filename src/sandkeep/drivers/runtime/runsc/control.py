"""gVisor's control socket, which its own command line speaks: a unix stream, one JSON object {method, arg} a call,
files by SCM_RIGHTS (pkg/urpc). Internal to gVisor: the names are those of the builds in TESTED.

A pause takes 0.2 ms this way and 32 ms by the command line. Pauses are counted: two need two resumes, and one resume
too many ends the sandbox.
"""

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandkeep.domain.errors import DeadlineExceeded, Internal

TESTED = frozenset({"20240729.0"})
IMAGE_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
_ANSWER_LIMIT = 4 << 20


class CallFailedError(Exception):
    """The sandbox answered with an error; it lives on."""


async def call(path: str, method: str, argument: Any = None, fds: Sequence[int] = (), *, timeout: float = 10.0) -> Any:
    """One connection for each call: a checkpoint blocks its connection, and an error leaves no half-read answer.

    Raises CallFailedError, DeadlineExceeded, or Internal when the sandbox does not answer (it died)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    request = json.dumps({"method": method, "arg": argument}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                connection.connect(path)  # a local stream connects at once or not at all
                connection.sendmsg([request], rights)
                reply = await _answer(connection)
        except TimeoutError as error:
            raise DeadlineExceeded(f"gVisor did not answer {method} within {timeout:g} s") from error
        except OSError as error:
            raise Internal(f"gVisor does not answer {method}: {error.strerror}") from error
    if not reply.get("success"):
        raise CallFailedError(str(reply.get("err")))
    return reply.get("result")


async def _answer(connection: socket.socket) -> dict[str, Any]:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < _ANSWER_LIMIT:
        part = await loop.sock_recv(connection, 65536)
        if not part:
            raise Internal("gVisor ended during a call")
        data += part
        with contextlib.suppress(ValueError):  # neither length nor delimiter: complete when it parses
            value = json.loads(data)
            if isinstance(value, dict):
                return value
    raise Internal("gVisor answered too much")


async def pause(path: str) -> None:
    await call(path, "containerManager.Pause")


async def resume(path: str) -> None:
    """Waits for a checkpoint that somebody else began."""
    await call(path, "containerManager.Resume", timeout=120)


async def checkpoint(path: str, folder: Path | None, *, timeout: float) -> None:
    """Write the image files into an empty folder, or nowhere (None: all but the writing). With Resume a failure leaves
    the sandbox as it was; without it a failure would end it. Uncompressed: compressing costs 3.5 s for each GiB."""
    fds: list[int] = []
    try:
        for name in IMAGE_FILES:
            file = str(folder / name) if folder else os.devnull
            fds += [os.open(file, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if folder else 0), 0o600)]
        options = {
            "Metadata": {"compression": "none"},
            "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": False},
            "have_pages_file": True,
            "Resume": True,
        }
        await call(path, "containerManager.Checkpoint", options, fds, timeout=timeout)
    finally:
        for fd in fds:
            os.close(fd)
