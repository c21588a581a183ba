"""A local terminal joined to one in a sandbox: raw mode, resizing, and the local one restored whatever happens."""

import contextlib
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sandkeep.sdk import Terminal

_BLOCK = 1 << 14
_INTERRUPT = b"\x03"


def window() -> tuple[int, int]:
    """Columns and rows. Raises UsageError when there is no terminal to join."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("there is no terminal here; leave out -t, and pass a command to exec")
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns or 80, size.lines or 24


def interact(terminal: "Terminal") -> int:
    """Until the remote process ends; its exit code. A signal that ends us hangs the remote terminal up."""
    try:
        import termios
        import tty
    except ImportError as error:
        raise click.UsageError("terminals need Linux or macOS here; use exec without -t") from error
    from sandkeep.sdk import SandkeepError

    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    before = termios.tcgetattr(keys)
    resized = signal.signal(signal.SIGWINCH, lambda *_: _poke(wake_write, b"r"))
    pump = threading.Thread(target=_pump, args=(terminal, keys, screen, wake_read), daemon=True)
    try:
        tty.setraw(keys, termios.TCSADRAIN)  # what was typed meanwhile is not thrown away
        pump.start()
        for output in terminal:
            if isinstance(output, bytes):
                _write_all(screen, output)
            else:
                _write_all(screen, f"\r\n[{output.count} bytes were lost]\r\n".encode())
    except BaseException:
        with contextlib.suppress(SandkeepError):
            terminal.signal("SIGHUP")
        raise
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, resized)
        _poke(wake_write, b"q")
        if pump.ident is not None:
            pump.join(2.0)
        terminal.close()
        os.close(wake_read)
        os.close(wake_write)
    if terminal.result is None:
        raise click.ClickException(
            f"left while it was not connected; process {terminal.pid} goes on if its sandbox does"
        )
    return terminal.result.exit_code


def _pump(terminal: "Terminal", keys: int, screen: int, wake: int) -> None:
    """Keys and resizes, in a thread of its own. While the connection is broken (the sandbox is paused, the server away)
    keys are dropped, as a line would, and Ctrl-C leaves."""
    from sandkeep.sdk import SandkeepError
    from sandkeep.sdk.errors import ConnectionLost

    watched = [keys, wake]
    while True:
        ready, _, _ = select.select(watched, [], [])
        with contextlib.suppress(SandkeepError):
            if wake in ready:
                pokes = os.read(wake, 64)
                if b"q" in pokes:
                    return
                size = os.get_terminal_size(screen)
                terminal.resize(size.columns, size.lines)
            if keys in ready:
                block = os.read(keys, _BLOCK)
                if block:
                    try:
                        terminal.write(block)
                    except ConnectionLost:
                        if _INTERRUPT in block:
                            terminal.close()
                else:
                    watched.remove(keys)
                    terminal.end_of_input()


def _poke(pipe: int, what: bytes) -> None:
    # A full pipe has woken the thread already.
    with contextlib.suppress(BlockingIOError):
        os.write(pipe, what)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
