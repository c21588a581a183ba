"""Each kind of object that is stored of a sandbox, changed: in the archive, in the node's folder, in the pool. It is refused
before anything runs, the way out is named, nothing is lost, and when the object is put back it works again. (That no piece of any
archive is ever taken for another is seen faster without a machine: tests/unit/test_archive_worker.)
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict, SandkeepError
from support.instance import SMALLER, Instance, until
from support.witness import machine_pids

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.01; done"

Damage = Callable[[bytes], bytes]


def _flipped(place: float) -> Damage:
    def damage(data: bytes) -> bytes:
        at = min(int(len(data) * place), len(data) - 1)
        return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]

    return damage


DAMAGES: dict[str, Damage] = {
    "its first byte flipped": _flipped(0),
    "its last byte flipped": _flipped(1),
    "a byte in the middle flipped": _flipped(0.5),
    "cut": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
}


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    """None: removed. The same file has its bytes back at the end."""
    good, mode = path.read_bytes(), path.stat().st_mode
    assert data != good
    path.unlink() if data is None else path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(good)
        path.chmod(mode)


KINDS = [*DAMAGES, "another in its place", "removed"]


def each(paths: list[Path], others: dict[Path, bytes]) -> Iterator[tuple[str, Path, bytes | None]]:
    """Every kind of damage, to objects of one kind in turn. others: what each is swapped for."""
    for kind, path in zip(KINDS, itertools.cycle(paths), strict=False):
        good = path.read_bytes()
        found = DAMAGES[kind](good) if kind in DAMAGES else None if kind == "removed" else others[path]
        yield f"{path.name[:20]}: {kind}", path, found


def swapped(paths: list[Path]) -> dict[Path, bytes]:
    """Each for the next of its kind."""
    return {path: after.read_bytes() for path, after in zip(paths, paths[1:] + paths[:1], strict=True)}


def said(sandbox: Sandbox, command: str) -> str:
    done = sandbox.exec(command, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def paused(client: Client, name: str) -> Sandbox:
    """With a counter in its memory, and little on its disk."""
    made = Sandbox.create(
        name=name,
        template="test",
        runtime="gvisor",
        persistence="full",
        memory="192MiB",
        disk="512MiB",
        client=client,
    )
    said(made, f"{SMALLER}; echo kept > /root/file")
    made.start_process(["sh", "-c", COUNTER], user="root").detach()
    until(lambda: int(said(made, "cat /dev/shm/n 2>/dev/null || echo 0")))
    made.pause()
    return made


def goes_on(sandbox: Sandbox) -> None:
    """From its memory, on its disk."""
    sandbox.resume()
    assert said(sandbox, "cat /root/file") == "kept"
    now = int(said(sandbox, "cat /dev/shm/n"))
    until(lambda: int(said(sandbox, "cat /dev/shm/n")) > now)


def of_generation(instance: Instance, sandbox: Sandbox) -> list[Path]:
    folder = instance.root / "data/pool/sandboxes" / sandbox.id / "generations"
    return sorted(path for path in folder.glob("*/memory/*") if path.is_file())


def refused(sandbox: Sandbox, act: Callable[[], Any], what: str, way_out: str, error: type[SandkeepError]) -> None:
    """And it is as it was, and nothing of it runs."""
    before = sandbox.phase, sandbox.hold
    try:
        act()
    except error as caught:
        assert way_out in (caught.hint or ""), f"{what}: {caught} {caught.hint}"
    else:
        raise AssertionError(f"{what} was taken")
    sandbox.refresh()
    assert (sandbox.phase, sandbox.hold) == before, what
    assert machine_pids(sandbox) == set(), what


def test_every_kind_of_object_of_an_archive_and_of_a_pause(client: Client, instance: Instance) -> None:
    sandbox = paused(client, "vaulted")
    _of_a_pause(instance, sandbox)
    sandbox.archive()
    _of_an_archive(instance, sandbox)
    assert instance.fsck() == []


def _of_a_pause(instance: Instance, sandbox: Sandbox) -> None:
    files = of_generation(instance, sandbox)
    assert len(files) >= 2
    for what, path, data in each(files, swapped(files)):
        with changed(path, data):
            refused(sandbox, sandbox.resume, what, "sandkeep start", SandkeepError)
    goes_on(sandbox)
    sandbox.pause()


def _of_an_archive(instance: Instance, sandbox: Sandbox) -> None:
    home = instance.root / "data/archive/sandboxes" / sandbox.id
    (first,) = (home / "manifests").iterdir()
    older = first.read_bytes()
    sandbox.wake()
    goes_on(sandbox)
    sandbox.pause()
    with changed(home / "key", b"nonsense"):  # the node believes its own copy alone, and puts it there again
        sandbox.archive()
        assert b"nonsense" not in (home / "key").read_bytes()
    (manifest,) = (home / "manifests").iterdir()
    assert manifest.name != first.name
    pieces = sorted((home / "pieces").iterdir())
    assert len(pieces) > 10
    others = swapped(pieces) | {manifest: older}
    apart = pieces[:: len(pieces) // len(KINDS) or 1]
    for what, path, data in itertools.chain(each([manifest], others), each(apart, others)):
        with changed(path, data):
            refused(sandbox, sandbox.wake, what, "--disk-only", Conflict)
            assert not (instance.root / "data/pool/sandboxes" / sandbox.id).exists(), what
    keys = sorted((instance.root / "data/node/keys").iterdir())
    for what, path, data in each(keys, swapped(keys)):
        if data is not None:  # a key that is not there is made: another, as with one in its place
            with changed(path, data):
                refused(sandbox, sandbox.wake, what, "", SandkeepError)
    sandbox.wake()
    goes_on(sandbox)


@pytest.mark.long
@pytest.mark.parametrize("archived", [False, True])
def test_the_record_of_it(client: Client, instance: Instance, archived: bool) -> None:
    """It holds what every other object is compared with. One that is not as it was written is no record of anything."""
    sandbox, other = paused(client, "noted"), paused(client, "else")
    if archived:
        sandbox.archive()
    before = sandbox.phase
    path, beside = (instance.root / f"data/node/sandboxes/{one.id}.json" for one in (sandbox, other))
    good = path.read_bytes()
    for what, data in (("flipped", _flipped(0.5)(good)), ("cut", good[:-9]), ("another's", beside.read_bytes())):
        path.write_bytes(data)
        _restarted(instance)
        until(lambda: sandbox.refresh() or sandbox.phase == "failed")
        for act in (sandbox.wake, sandbox.resume, sandbox.start):
            with pytest.raises(SandkeepError):
                act()
        assert machine_pids(sandbox) == set(), what
        assert any(one["kind"] == "record.unreadable" for one in instance.fsck()), what
        path.write_bytes(good)
        _restarted(instance)
        until(lambda: sandbox.refresh() or sandbox.phase == before, timeout=40)
    if archived:
        sandbox.wake()
    goes_on(sandbox)


def _restarted(instance: Instance) -> None:
    instance.kill("runner")
    instance.ensure_up()
