"""nftables in this process: libnftables by ctypes, 0.2 ms a transaction; `nft -f -` (3 to 24 ms) where it is missing.

The library is loaded from the host and never shipped (GPL-2). One text is one transaction: all of it or nothing. An
aborted one waits for an RCU grace period (about 15 ms), so callers know what exists before they delete.
"""

import contextlib
import ctypes
import functools
import json
import shutil
import struct
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import anyio
import anyio.from_thread

from sandkeep.domain.errors import Unavailable
from sandkeep.drivers.network.rtnetlink import Netlink, attributes
from sandkeep.lib import process

_LIBRARY = "libnftables.so.1"
_JSON = 1 << 4
_TIMEOUT = 20.0
_NETLINK_NETFILTER = 12
_GET_GENERATION, _GENERATION_ID = 10 << 8 | 16, 1
"""NFT_MSG_GETGEN and NFTA_GEN_ID of linux/netfilter/nf_tables.h."""


class NftError(Exception):
    """The kernel or the parser refused a transaction; nothing of it happened. `text` is what was asked."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message.strip()[:2000] or "nft failed without a word")
        self.text = text


def generation() -> int | None:
    """A number that changes with every transaction in this network namespace, whoever made it; 20 us. None where the
    kernel does not tell."""
    try:
        with Netlink(_NETLINK_NETFILTER) as netlink:
            for _, answer in netlink.dump(_GET_GENERATION, struct.pack("=BBH", 0, 0, 0), flags=0):
                return int.from_bytes(attributes(answer[4:])[_GENERATION_ID])
    except (OSError, KeyError):
        pass
    return None


class Nft(Protocol):
    """Called in worker threads; any number at once."""

    def run(self, text: str) -> str:
        """One transaction, or one listing: what it printed. Raises NftError."""
        ...

    def listing(self, text: str) -> list[dict[str, Any]]:
        """The objects that a `list` command finds, as libnftables-json(5) has them. Raises NftError."""
        ...


class NftLibrary:
    """One context behind one lock: a context is not thread-safe. Raises OSError when the library is not there."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_LIBRARY)
        library.nft_ctx_new.restype = ctypes.c_void_p  # without it ctypes cuts the pointer to 32 bits
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context = library.nft_ctx_new(0)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._library.nft_ctx_free(self._context)

    def _run(self, text: str, flags: int) -> str:
        with self._lock:
            self._library.nft_ctx_output_set_flags(self._context, flags)
            failed = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
            error = self._library.nft_ctx_get_error_buffer(self._context)
            output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
            if failed:
                raise NftError(error.decode(errors="replace"), text)
            return output.decode(errors="replace")

    def run(self, text: str) -> str:
        return self._run(text, 0)

    def listing(self, text: str) -> list[dict[str, Any]]:
        return _objects(self._run(text, _JSON))


class NftProgram:
    """The same by the nft program. From an anyio worker thread it runs in the loop that thread came from."""

    def __init__(self, program: str = "nft") -> None:
        self._program = shutil.which(program) or f"/usr/sbin/{program}"

    def _run(self, text: str, *flags: str) -> str:
        async def call() -> process.Completed:
            return await process.run((self._program, *flags, "-f", "-"), timeout=_TIMEOUT, stdin=text.encode())

        try:
            return _from_any_thread(call).stdout
        except process.ProgramError as error:
            if error.completed.code < 0:
                raise Unavailable(
                    f"nft of this host is killed by signal {-error.completed.code} when it reads the rules that are there",
                    hint="a newer nft has written some, as in a container with the host's network: remove its tables, "
                    "or upgrade nftables here",
                ) from error
            raise NftError(error.completed.stderr, text) from error
        except (process.ProgramMissingError, process.ProgramTimeoutError) as error:
            raise NftError(str(error), text) from error

    def run(self, text: str) -> str:
        return self._run(text)

    def listing(self, text: str) -> list[dict[str, Any]]:
        return _objects(self._run(text, "-j"))


def open_nft() -> Nft:
    """The library when the host has it, else the program. Raises Unavailable when it would end this process, too."""
    _probe()
    try:
        return NftLibrary()
    except OSError:
        return NftProgram()


@functools.cache
def _probe() -> None:
    """libnftables 1.0.6 follows a null pointer at each named set that 1.1 has written, also those of others."""
    with contextlib.suppress(NftError):
        NftProgram().run("list ruleset")


def _from_any_thread(call: Callable[[], Coroutine[Any, Any, process.Completed]]) -> process.Completed:
    """In the loop of the worker thread's owner; doctor and setup, which have none, get a loop in a thread."""
    try:
        return anyio.from_thread.run(call)
    except anyio.NoEventLoopError:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(anyio.run, call).result()


def _objects(text: str) -> list[dict[str, Any]]:
    found = json.loads(text).get("nftables", []) if text.strip() else []
    return [one for one in found if isinstance(one, dict)]
