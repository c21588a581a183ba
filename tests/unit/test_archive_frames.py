"""What the engine takes from the confined program, which may be anybody's by then: bounded, and given up at any moment."""

import io
import os
import struct
from pathlib import Path

import anyio
import pytest

from sandkeep.domain.errors import Internal
from sandkeep.engine.archive import frames, worker
from sandkeep.engine.archive.worker import Worker
from support.instance import until


def frame(kind: bytes, size: int, data: bytes) -> io.BytesIO:
    return io.BytesIO(struct.pack(">cI", kind, size) + data)


def test_a_frame_goes_through() -> None:
    pipe = io.BytesIO()
    frames.send(pipe, frames.PIECE, b"name", b"sealed")
    pipe.seek(0)
    assert frames.receive(pipe, 10) == (frames.PIECE, b"namesealed")


@pytest.mark.parametrize("size", [11, frames.MOST])
def test_what_is_longer_than_it_may_be_is_not_even_read(size: int) -> None:
    pipe = frame(frames.PIECE, size, b"x" * 20)
    with pytest.raises(ValueError, match="too long"):
        frames.receive(pipe, 10)
    assert len(pipe.read()) == 20


def test_the_last_one_has_a_bound_of_its_own() -> None:
    assert frames.receive(frame(frames.DONE, 20, b"x" * 20), 10) == (frames.DONE, b"x" * 20)
    with pytest.raises(ValueError, match="too long"):
        frames.receive(frame(frames.DONE, frames.MOST + 1, b""), 10)


@pytest.mark.parametrize("data", [b"", b"P\0\0", b"P\0\0\0\x05half"])
def test_an_end_in_the_middle_is_said(data: bytes) -> None:
    with pytest.raises(EOFError):
        frames.receive(io.BytesIO(data), 10)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of the confined program."""
    path = tmp_path / "program"
    monkeypatch.setattr(worker.sys, "executable", str(path))
    return path


def says(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.anyio
@pytest.mark.parametrize("script", ["exec sleep 1000", "printf 'P\\000\\000\\000\\012half'; exec sleep 1000"])
async def test_a_program_that_says_nothing_more_is_given_up(program: Path, script: str, tmp_path: Path) -> None:
    says(program, f"echo $$ > {tmp_path}/pid\n{script}")
    before = descriptors()
    with anyio.move_on_after(0.5) as scope:
        await Worker(None).look(b"", bytes(32), bytes(32))
    assert scope.cancelled_caught
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}/exe").exists()
    until(lambda: descriptors() <= before)


@pytest.mark.anyio
@pytest.mark.parametrize("script", ["printf 'P\\377\\377\\377\\377'; exec sleep 1000", "printf 'Q'", "exit 3"])
async def test_a_program_that_says_nonsense_is_ended(program: Path, script: str) -> None:
    says(program, script)
    with anyio.fail_after(20), pytest.raises(Internal, match="the archive's program ended"):
        await Worker(None).look(b"", bytes(32), bytes(32))
