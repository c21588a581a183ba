"""gVisor's command lines, builds, errors, and its control socket against a pretended sandbox."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sandkeep.domain.errors import DeadlineExceeded, Internal, Unsupported
from sandkeep.domain.sandbox import Hold, Persistence
from sandkeep.drivers.runtime._oci import exits
from sandkeep.drivers.runtime.runsc import build, command, control, driver, reasons, state

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_the_launcher() -> None:
    plain = command.launcher(Path("/r/fstab"), ["/cg/a/tasks", "/cg/b/tasks"], [])
    assert plain[:5] == ["unshare", "--mount", "--propagation", "private", "--"]
    assert plain[5:7] == ["/bin/sh", "-c"]
    assert plain[8:] == ["/r/fstab", "/cg/a/tasks", "/cg/b/tasks", "--"]
    assert command.launcher(Path("/f"), [], [1, 3])[:3] == ["taskset", "--cpu-list", "1,3"]


def test_covered_files() -> None:
    assert command.meminfo(256 << 20) == "MemTotal:       262144 kB\n"
    text = command.fstab(Path("/run/a b/meminfo"), Path("/a b/agents/1"))
    assert "/run/a\\040b/meminfo /proc/meminfo none bind 0 0" in text
    assert "/proc/sys/net tmpfs" in text
    assert "/a\\040b/agents/1 /a\\040b/agents/1 none bind,ro 0 0" in text


@pytest.mark.parametrize(
    ("cpus", "online", "count"), [(0.5, 8, 2), (2.0, 8, 2), (2.1, 8, 3), (8, 8, 0), (16, 8, 0), (1, 2, 0), (1, 1, 0)]
)
def test_visible_cpus(cpus: float, online: int, count: int) -> None:
    found = command.visible_cpus(cpus, range(online))
    assert len(found) == count
    assert set(found) <= set(range(online))


def test_command_lines() -> None:
    flags = command.global_flags(Path("/s"), "ptrace", Path("/l"))
    assert {"--root=/s", "--platform=ptrace", "--overlay2=none", "--net-disconnect-ok", "--ignore-cgroups"} <= set(
        flags
    )
    assert command.run("m", Path("/b")) == ["run", "--detach", "--bundle=/b", "m"]
    assert command.restore("m", Path("/b"), Path("/i"))[-2:] == ["--image-path=/i", "m"]


X86 = "processor : 0\nflags\t\t: sse fpu hypervisor\n"


@pytest.mark.parametrize(
    ("setting", "cpuinfo", "platform"),
    [
        ("auto", X86, "ptrace"),
        ("auto", "flags : sse fpu\n", "systrap"),
        ("auto", "Features : fp asimd\n", "systrap"),
        ("systrap", X86, "systrap"),
        ("ptrace", "", "ptrace"),
    ],
)
def test_platform(setting: str, cpuinfo: str, platform: str) -> None:
    assert build.choose_platform(setting, cpuinfo) == platform


BUILD = build.Build("gvisor", "20240729.0", "aa", "ptrace", "x86_64", "cc")


def test_an_image_fits_its_own_build() -> None:
    BUILD.check(BUILD.requires())
    for field in ("runtime", "version", "sha256", "platform", "arch", "cpu"):
        with pytest.raises(Unsupported, match="saved with another"):
            BUILD.check(BUILD.requires() | {field: "other"})
    with pytest.raises(Unsupported):
        BUILD.check({})


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("runsc version 0.0~20240729.0\nspec: 1.2.0\n", "20240729.0"),
        ("runsc version release-20250319.0\nspec: 1.1.0\n", "20250319.0"),
        ("runsc version VERSION_MISSING\n", "runsc version VERSION_MISSING"),
    ],
)
async def test_version(tmp_path: Path, printed: str, found: str) -> None:
    binary = tmp_path / "runsc"
    binary.write_text(f"#!/bin/sh\nprintf '{printed}'\n")
    binary.chmod(0o755)
    assert await build.version(binary) == found


async def test_a_missing_binary_is_a_reason(tmp_path: Path) -> None:
    runtime = driver.GvisorRuntime(tmp_path / "run", tmp_path / "runsc", "sandkeep-none")
    with pytest.raises(Unsupported):
        await build.version(tmp_path / "runsc")
    await runtime.open()
    assert not runtime.capabilities.available
    assert "runsc" in runtime.capabilities.reason
    assert await runtime.machines() == []


def test_an_untested_build_holds_no_memory_on_disk() -> None:
    newer = replace(BUILD, version="20991231.0")
    tested, other = driver._capabilities(BUILD, frozenset()), driver._capabilities(newer, frozenset())
    assert driver._capabilities(newer, frozenset({newer.sha256})).holds == tested.holds
    assert Hold.DISK in tested.holds
    assert Persistence.FULL in tested.persistence
    assert other.available
    assert other.holds == {Hold.MEMORY}
    assert Persistence.FULL not in other.persistence
    assert "20991231.0" in other.unsupported["full"]


def test_reasons() -> None:
    text = (
        "encoding error: gofer.dentry(x).beforeSave: deleted and invalidated dentries can't be restored:\ngoroutine 43"
    )
    sentence, hint = reasons.explain(text)
    assert "deleted" in sentence
    assert hint
    assert not reasons.connecting(text)
    waiting = "encoding error: nil pointer:\ntcp.(*Endpoint).resetConnectionLocked(0xc0)\nfor object tcp.Endpoint{}"
    assert "waits for a connection" in reasons.explain(waiting)[0]
    assert reasons.connecting(waiting)
    assert reasons.explain("something new\ngoroutine 1")[0] == "gVisor cannot save the memory: something new"
    assert reasons.explain("")[0].endswith("no reason")


def test_deleted_files(tmp_path: Path) -> None:
    path = tmp_path / "held\x1b[2J"
    with path.open("w"):
        path.unlink()
        assert str(tmp_path / "held[2J") in reasons.deleted_files(os.getpid())
    assert reasons.deleted_files(1 << 30) == []


def test_state_files(tmp_path: Path) -> None:
    assert state.load(tmp_path, "m1") is None
    file = tmp_path / "m1_sandbox:m1.state"
    sandbox = {"pid": 5, "controlSocketPath": f"{tmp_path}/runsc-m1.sock"}
    file.write_text(json.dumps({"sandbox": sandbox, "goferPid": 6}))
    (tmp_path / "m1_sandbox:m1.lock").touch()
    (tmp_path / "runsc-m1.sock").touch()
    assert state.load(tmp_path, "m1") == state.Container(5, 6, f"{tmp_path}/runsc-m1.sock")
    assert state.known(tmp_path) == {"m1"}
    state.forget(tmp_path, "m1")
    assert list(tmp_path.iterdir()) == []
    for text in ("", "{", "[]", '{"sandbox": null}', '{"sandbox": {"pid": "x"}}'):
        file.write_text(text)
        assert state.load(tmp_path, "m1") is None


@pytest.mark.parametrize(
    ("status", "oom_kills", "panic", "text"),
    [
        (0, 0, "", "ended with exit code 0"),
        (7 << 8, 0, "", "ended with exit code 7"),
        (7 << 8, 2, "", "ended with exit code 7"),
        (9, 0, "", "ended by SIGKILL"),
        (9, 1, "", "ended: it was out of memory"),
        (None, 0, "", "ended"),
        (None, 1, "", "ended: it was out of memory"),
        (2 << 8, 0, "panic: oops\n\ngoroutine", "ended: the runtime failed: panic: oops"),
    ],
)
def test_ends(status: int | None, oom_kills: int, panic: str, text: str) -> None:
    assert exits.describe(status, oom_kills, panic) == text


Answer = Callable[[dict[str, object]], bytes | None]
Serve = Callable[[Answer], Awaitable[str]]


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Serve]:
    """A pretended control socket: give it what to answer; None: nothing, ever."""
    servers = []

    async def serve(answer: Answer) -> str:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reply = answer(json.loads(await reader.read(65536)))
            if reply is None:
                await reader.read()
            else:
                for byte in reply:  # no framing: an answer may arrive in any pieces
                    writer.write(bytes([byte]))
                    await writer.drain()
            writer.close()

        servers.append(await asyncio.start_unix_server(one, tmp_path / "sock"))
        return str(tmp_path / "sock")

    yield serve
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_a_call(sandbox: Serve) -> None:
    asked: list[dict[str, object]] = []

    def answer(request: dict[str, object]) -> bytes:
        asked.append(request)
        return b'{"success": true, "err": "", "result": {"a": [1, 2]}}'

    path = await sandbox(answer)
    assert await control.call(path, "x.Y", {"b": 1}) == {"a": [1, 2]}
    assert asked == [{"method": "x.Y", "arg": {"b": 1}}]


async def test_calls_that_fail(sandbox: Serve) -> None:
    path = await sandbox(lambda request: b'{"success": false, "err": "no"}')
    with pytest.raises(control.CallFailedError, match="no"):
        await control.call(path, "x.Y")


async def test_a_sandbox_that_dies_during_a_call(sandbox: Serve) -> None:
    path = await sandbox(lambda request: b'{"success": tr')
    with pytest.raises(Internal):
        await control.call(path, "x.Y")


async def test_a_sandbox_that_never_answers(sandbox: Serve) -> None:
    path = await sandbox(lambda request: None)
    with pytest.raises(DeadlineExceeded):
        await control.call(path, "x.Y", timeout=0.05)


async def test_no_sandbox(tmp_path: Path) -> None:
    with pytest.raises(Internal, match="does not answer"):
        await control.call(str(tmp_path / "none"), "x.Y")


async def test_a_checkpoint_never_overwrites(sandbox: Serve, tmp_path: Path) -> None:
    path = await sandbox(lambda request: b'{"success": true, "err": "", "result": {}}')
    folder = tmp_path / "image"
    folder.mkdir()
    before = os.listdir("/proc/self/fd")
    await control.checkpoint(path, folder, timeout=5)
    assert sorted(file.name for file in folder.iterdir()) == sorted(control.IMAGE_FILES)
    with pytest.raises(FileExistsError):
        await control.checkpoint(path, folder, timeout=5)
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1
