"""What is in a snapshot, what differs between two points in time, and files put back: with everything a guest can make of its
disk in the way."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict, InvalidArgument, NoCapacity, NotFound, SandkeepError
from support.instance import Instance, client_of, until

HOSTILE = r"""
import os, socket
os.makedirs("/hostile/folder")
os.chdir("/hostile")
for name, target in {links!r}.items():
    os.symlink(target, name)
os.symlink("loop", "loop")
os.symlink("folder", "to-folder")
open("folder/file", "w").write("inside")
open(b"not-\xff-utf8", "w").write("bytes")
open("line\nfeed", "w").write("x")
open("\x1b[31mred", "w").write("x")
os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("socket")
try:
    os.mknod("device", 0o20666, os.makedev(1, 5))
except OSError:
    os.mkfifo("device")
open("set-uid", "w").write("x")
os.chmod("set-uid", 0o4755)
os.chown("set-uid", 1234, 5678)
os.utime("set-uid", ns=(10**18, 10**18 + 5))
with open("holes", "wb") as file:
    file.seek(1 << 34)
    file.write(b"end")
deep = os.open("folder", os.O_RDONLY)
for _ in range(400):
    os.mkdir("d" * 10, dir_fd=deep)
    below = os.open("d" * 10, os.O_RDONLY, dir_fd=deep)
    os.close(deep)
    deep = below
"""

NODE_ALONE = pytest.mark.parametrize("runtime", ["runc", pytest.param("gvisor", marks=pytest.mark.long)])
"""Where the runtime has next to no part in it."""


def box(client: Client, runtime: str, **options: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="192MiB", disk="512MiB", client=client, **options)  # type: ignore[arg-type]


def inside(sandbox: Sandbox, code: str) -> str:
    done = sandbox.exec(["python3", "-c", code], user="root", timeout=120)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def shell(sandbox: Sandbox, line: str) -> str:
    done = sandbox.exec(line, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout


def drain(stream: Iterator[bytes]) -> None:
    for _ in stream:
        pass


def files_held(instance: Instance) -> list[str]:
    """What the runner has open in the pool."""
    held = []
    for fd in Path(f"/proc/{instance.pid('runner')}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if "/generations/" in target or "/sandboxes/" in target:
            held.append(target)
    return held


def test_a_snapshot_is_read_without_starting_anything(client: Client, runtime: str, tmp_path: Path) -> None:
    sandbox = box(client, runtime, name="shelf")
    shell(sandbox, "mkdir /shelf && echo then > /shelf/note && chmod 640 /shelf/note && chown 7:8 /shelf/note")
    shell(sandbox, "ln -s note /shelf/link && dd if=/dev/urandom of=/shelf/bytes bs=1M count=3 2> /dev/null")
    digest = shell(sandbox, "sha256sum /shelf/bytes").split()[0]
    sandbox.snapshot("full")
    shell(sandbox, "echo now > /shelf/note && rm /shelf/bytes")
    disk = sandbox.snapshots
    for phase in ("running", "stopped"):
        found = {one.name: one for one in disk.ls("full", "/shelf")}
        assert sorted(found) == ["bytes", "link", "note"]
        note = found["note"]
        assert (note.type, note.size, note.mode, note.owner, note.group) == ("file", 5, 0o640, "7", "8")
        assert (found["link"].type, found["link"].symlink_target) == ("symlink", "note")
        assert disk.read_text("full", "/shelf/link") == "then\n"
        assert disk.stat("full", "/shelf/link").type == "symlink"
        assert disk.stat("full", "/shelf/link", follow=True).size == 5
        assert hashlib.sha256(disk.read("full", "/shelf/bytes")).hexdigest() == digest
        copied = disk.read_tree("full", "/shelf", tmp_path / phase, exclude=["*.o"])
        assert (copied.files, copied.symlinks, copied.skipped) == (2, 1, ())
        assert (tmp_path / phase / "note").read_text() == "then\n"
        assert {"bin", "etc", "shelf"} <= {one.name for one in disk.ls("full")}
        for path in ("/no/such", "/shelf/note/below"):
            with pytest.raises(NotFound):
                disk.ls("full", path)
            with pytest.raises(NotFound):
                disk.read("full", path)
        with pytest.raises(InvalidArgument, match="no folder"):
            disk.ls("full", "/shelf/note")
        with pytest.raises(InvalidArgument, match="no file"):
            disk.read("full", "/shelf")
        with pytest.raises(NotFound):
            disk.ls("nope")
        sandbox.refresh()
        assert sandbox.phase == phase
        sandbox.stop()
    assert disk.read_text(None, "/shelf/note") == "now\n", "the disk as it is now"


def test_nothing_that_a_guest_made_leads_out(client: Client, instance: Instance, runtime: str, tmp_path: Path) -> None:
    """Links are followed within the disk; what is no file is never opened; names are bytes."""
    canary = instance.root / "canary"
    canary.write_text("of the host")
    up = "../" * 40
    links = {
        "shadow": "/etc/shadow",
        "up": up + "etc/shadow",
        "host": str(canary),
        "up-host": up + str(canary).lstrip("/"),
        "pool": "/../../../generations",
        "proc": "/proc/self/root/etc/shadow",
    }
    sandbox = box(client, runtime)
    inside(sandbox, HOSTILE.format(links=links))
    own = shell(sandbox, "cat /etc/shadow")
    sandbox.snapshot("bad")
    disk = sandbox.snapshots
    for snapshot in ("bad", None):
        assert disk.read_text(snapshot, "/hostile/shadow") == own
        assert disk.read_text(snapshot, "/hostile/up") == own
        assert disk.read_text(snapshot, f"/hostile/{up}etc/shadow") == own
        for name in ("host", "up-host", "pool", "proc"):
            with pytest.raises(NotFound):
                disk.read(snapshot, f"/hostile/{name}")
            with pytest.raises(NotFound):
                disk.ls(snapshot, f"/hostile/{name}")
            assert disk.stat(snapshot, f"/hostile/{name}").symlink_target == links[name]
        with pytest.raises(InvalidArgument):
            disk.read(snapshot, "/hostile/loop")
        with pytest.raises(InvalidArgument, match="no file"):
            disk.read(snapshot, "/hostile/folder")
        for name in ("pipe", "socket", "device"):
            with pytest.raises(InvalidArgument if runtime == "runc" else (InvalidArgument, NotFound)):
                disk.read(snapshot, f"/hostile/{name}")  # gVisor keeps them to itself
        assert [one.name for one in disk.ls(snapshot, "/hostile/to-folder")] == ["d" * 10, "file"]
        assert disk.read_text(snapshot, "/hostile/not-\udcff-utf8") == "bytes"
        assert {"line\nfeed", "\x1b[31mred", "not-\udcff-utf8"} <= {one.name for one in disk.ls(snapshot, "/hostile")}
        with pytest.raises(InvalidArgument):
            disk.stat(snapshot, "/" + "x" * 300)
        with pytest.raises((InvalidArgument, NotFound)):
            disk.stat(snapshot, "/x" * 16_000)
        with pytest.raises((InvalidArgument, NotFound)):
            disk.stat(snapshot, "/hostile/folder" + ("/" + "d" * 10) * 390 + "/no")
        assert disk.stat(snapshot, "/hostile/folder" + ("/" + "d" * 10) * 390).type == "directory"
        with pytest.raises(InvalidArgument):
            disk.ls(snapshot, "etc")
    copied = disk.read_tree("bad", "/hostile", tmp_path / "out", exclude=["holes"])
    assert copied.skipped_count >= (
        9 if runtime == "runc" else 7
    )  # links that lead out, no files, and what is too deep
    assert any("deeper" in line for line in copied.skipped)
    names = {os.fsencode(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*")}
    assert names >= {b"not-\xff-utf8", b"line\nfeed", b"folder", b"set-uid", b"to-folder"}
    assert not names & {b"shadow", b"up", b"host", b"pipe", b"socket", b"device"}
    assert (tmp_path / "out/set-uid").stat().st_mode & 0o7777 == 0o755
    disk.read_tree("bad", "/hostile", tmp_path / "sparse", exclude=["folder"])
    holes = (tmp_path / "sparse/holes").stat()
    assert (holes.st_size, holes.st_blocks < 1000) == ((1 << 34) + 3, True)
    listed = instance.run("snapshot", "ls", f"{sandbox.id}@bad:/hostile").stdout
    assert "\x1b" not in listed
    assert len([line for line in listed.splitlines() if "red" in line or "feed" in line]) == 2
    assert files_held(instance) == []


@NODE_ALONE
def test_a_huge_folder_comes_in_pages(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime)
    code = "import os\nos.mkdir('/many')\nfor number in range(5000): open(f'/many/{number}', 'w').close()"
    inside(sandbox, code)
    sandbox.snapshot("many")
    names = [one.name for one in sandbox.snapshots.iter_ls("many", "/many")]
    assert names == sorted(map(str, range(5000)))
    saved = instance.config
    headers = {"Authorization": f"Bearer {saved['key']}"}
    with httpx2.Client(base_url=saved["url"], headers=headers, trust_env=False, timeout=60) as http:
        route = f"/v1/sandboxes/{sandbox.id}/browse/list"
        asked = {"snapshot": "many", "path": "/many", "limit": 3}
        first = http.get(route, params=asked).json()
        assert [item["name"] for item in first["items"]] == ["0", "1", "10"]
        second = http.get(route, params={**asked, "cursor": first["next_cursor"]}).json()
        assert [item["name"] for item in second["items"]] == ["100", "1000", "1001"]
        for wrong in (
            {"cursor": "~"},
            {"cursor": "ä"},
            {"limit": 0},
            {"limit": 5000},
            {"path": "many"},
            {"path": "/\0"},
        ):
            assert http.get(route, params={**asked, **wrong}).status_code == 400, wrong
        assert http.get(f"{route}?snapshot=many&path=/many/%FF").json()["code"] == "not_found"
        assert http.get(f"/v1/sandboxes/{sandbox.id}/browse/files?path=/" + "x" * 65_000).status_code in (400, 414, 431)


@NODE_ALONE
@pytest.mark.parametrize("how", ["snapshot", "sandbox", "rollback"])
def test_a_disk_that_goes_in_the_middle_of_a_read(client: Client, instance: Instance, runtime: str, how: str) -> None:
    """It goes at once, whoever reads it; the reader is told, and keeps nothing of it."""
    sandbox = box(client, runtime)
    shell(sandbox, "truncate -s 1T /endless")
    sandbox.snapshot("gone")
    stream = sandbox.snapshots.read_stream(None if how == "rollback" else "gone", "/endless")
    assert set(next(iter(stream))) == {0}
    assert len(files_held(instance)) == 1
    if how == "snapshot":
        sandbox.snapshots.delete("gone")
    elif how == "sandbox":
        sandbox.delete()
    else:
        sandbox.rollback("gone", keep_before=False)
    until(lambda: files_held(instance) == [])
    with pytest.raises(SandkeepError) as told:
        drain(stream)
    if how != "rollback":
        assert isinstance(told.value, NotFound)
    assert instance.fsck() == []


@NODE_ALONE
def test_a_reader_that_goes_away_holds_nothing(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime)
    shell(sandbox, "truncate -s 1T /endless")
    sandbox.snapshot("kept")
    for read in ("files", "tree"):
        with client_of(instance) as other:
            stream = other.transport.open(
                "GET",
                f"/v1/sandboxes/{sandbox.id}/browse/{read}?snapshot=kept&path=/{'endless' if read == 'files' else ''}",
            )
            next(stream.iter_raw())
            until(lambda: files_held(instance))  # between two files of a tree it holds none
            stream.close()
        until(lambda: files_held(instance) == [])


def test_what_differs_is_told(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, name="differs")
    shell(sandbox, "mkdir -p /tree/a && echo 1 > /tree/a/changed && echo 2 > /tree/a/gone && echo 3 > /tree/a/mode")
    shell(
        sandbox, "cd /tree && for n in $(seq 300); do echo $n > still-$n; done; mkdir -p moved/deep; touch moved/deep/f"
    )
    shell(
        sandbox,
        "mkdir -p /usr/lib/python3/dist-packages/thing-1.0.dist-info /app/node_modules/left && echo hi > /home/x",
    )
    first = sandbox.snapshot("first")
    shell(sandbox, "cd /tree && echo 11 > a/changed && rm a/gone && chmod 600 a/mode && mv moved renamed && touch new")
    shell(sandbox, "printf 'Package: tiny\nStatus: install ok installed\nVersion: 2.1\n\n' >> /var/lib/dpkg/status")
    shell(sandbox, "cd /usr/lib/python3/dist-packages && mv thing-1.0.dist-info thing-1.1.dist-info")
    shell(sandbox, 'echo \'{"version": "3.0.0"}\' > /app/node_modules/left/package.json')
    now = sandbox.diff("first")
    tree = {change.path: (change.change, *change.what) for change in now.files if change.path.startswith("/tree")}
    assert tree == {
        "/tree/a/changed": ("changed", "content"),
        "/tree/a/gone": ("removed",),
        "/tree/a/mode": ("changed", "mode"),
        "/tree/moved": ("removed",),
        "/tree/moved/deep": ("removed",),
        "/tree/moved/deep/f": ("removed",),
        "/tree/renamed": ("added",),
        "/tree/renamed/deep": ("added",),
        "/tree/renamed/deep/f": ("added",),
        "/tree/new": ("added",),
    }
    assert now.fast
    assert not now.truncated
    changed = next(change for change in now.files if change.path == "/tree/a/changed")
    assert changed.before is not None and changed.after is not None
    assert (changed.before.size, changed.after.size) == (2, 3)
    packages = {(one.manager, one.name): (one.before, one.after) for one in now.packages}
    assert packages == {
        ("dpkg", "tiny"): (None, "2.1"),
        ("pip", "thing"): ("1.0", "1.1"),
        ("npm", "left"): (None, "3.0.0"),
    }
    second = sandbox.snapshot("second")
    assert sandbox.diff("second").counts.added == 0
    back = client.diff(second.id, f"differs@{first.name}")
    assert (back.counts.added, back.counts.removed) == (now.counts.removed, now.counts.added)
    (fork,) = sandbox.fork(snapshot="first")
    shell(fork, "echo fork > /tree/still-1")
    forked = client.diff("differs@first", fork.id)
    assert forked.fast
    assert "/tree/still-1" in {change.path for change in forked.files}
    assert not {change.path for change in forked.files} & {"/tree/new", "/tree/still-2"}
    cut = sandbox.diff("first", "second", limit=2)
    assert len(cut.files) == 2
    assert cut.truncated
    assert cut.counts == back.counts.model_copy(update={"added": back.counts.removed, "removed": back.counts.added})
    sandbox.stop()
    assert sandbox.diff("second").counts.added == 0
    sandbox.refresh()
    assert sandbox.phase == "stopped"
    for wrong in ("nobody", "differs@nope", "snp_" + "a" * 20):
        with pytest.raises(NotFound):
            client.diff("differs@first", wrong)
    for wrong in ("", "@x", "differs@"):
        with pytest.raises(InvalidArgument):
            client.diff("differs@first", wrong)
    assert instance.fsck() == []


@NODE_ALONE
def test_a_crash_in_the_middle_of_a_comparison_leaves_nothing(client: Client, instance: Instance, runtime: str) -> None:
    """Each with the disk as it is now, which keeps this moment for so long."""
    sandbox = box(client, runtime)
    inside(sandbox, "import os\nos.mkdir('/many')\nfor n in range(2000): open(f'/many/{n}', 'w').write('x')")
    sandbox.snapshot("first")
    inside(sandbox, "for n in range(2000): open(f'/many/{n}', 'w').write('yy')")
    done = threading.Event()

    def compare() -> None:
        with client_of(instance) as other:
            while not done.is_set():
                try:
                    assert Sandbox.get(sandbox.id, client=other).diff("first").counts.changed >= 2000
                except (SandkeepError, httpx2.HTTPError):
                    time.sleep(0.01)

    threads = [threading.Thread(target=compare) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for pause in (0.05, 0.2):
            until(lambda: sandbox.diff("first").counts.changed >= 2000, 60)
            time.sleep(pause)
            instance.kill("runner")
            instance.ensure_up()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    until(lambda: instance.fsck() == [])
    assert sandbox.diff("first").counts.changed >= 2000


@NODE_ALONE
def test_deletes_do_not_wait_for_comparisons(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime)
    inside(sandbox, "import os\nos.mkdir('/many')")
    sandbox.snapshot("first")
    inside(sandbox, "for n in range(5000): open(f'/many/{n:0200}', 'w').close()")
    ended: list[str] = []

    def compare(after: str | None) -> None:
        try:
            sandbox.diff("first", after)
            ended.append("done")
        except NotFound:
            ended.append("gone")

    for number in range(4):
        sandbox.snapshot(f"s{number}")
        threads = [threading.Thread(target=compare, args=(f"s{number}",)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.02 * number)
        sandbox.snapshots.delete(f"s{number}")
        for thread in threads:
            thread.join()
    assert len(ended) == 12
    threads = [threading.Thread(target=compare, args=(None,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    sandbox.delete()
    for thread in threads:
        thread.join()
    until(lambda: instance.fsck() == [])


def test_files_are_put_back(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, name="puts-back")
    shell(sandbox, "mkdir -p /work/sub && cd /work && echo then > file && chmod 4710 file && chown 12:34 file")
    shell(sandbox, "touch -d '2001-02-03 04:05:06' /work/file && cd /work && ln -s ../elsewhere link && ln file hard")
    shell(sandbox, "chmod 2751 /work/sub && chown 5:6 /work/sub && echo deep > /work/sub/deep && mkfifo /work/pipe")
    shell(sandbox, "truncate -s 1G /work/holes && touch \"$(printf '/work/not-\\377-utf8')\"")
    sandbox.snapshot("then")
    facts = "cd /work && stat -c '%n %F %a %u:%g %Y %s' file hard sub sub/deep && readlink link && cat file sub/deep"
    before = shell(sandbox, facts)
    shell(
        sandbox,
        "cd /work && echo now > file && chmod 600 file && chown 0:0 file && rm link hard && rm -r sub && echo mine > new",
    )
    done = sandbox.restore("then", "/work/file")
    assert (done.path, done.type, done.there_before, done.files, done.bytes) == ("/work/file", "file", True, 1, 5)
    assert shell(sandbox, "cat /work/file") == "then\n"
    done = sandbox.restore("then", "/work")
    assert (done.type, done.there_before, done.skipped, done.snapshot) == (
        "directory",
        True,
        1 if runtime == "runc" else 0,
        None,
    )
    assert shell(sandbox, facts) == before
    assert shell(sandbox, "cat /work/new") == "mine\n", "what else the folder has stays"
    assert shell(sandbox, "ls /work | wc -l").strip() == "8"
    assert int(shell(sandbox, "stat -c %s /work/holes")) == 1 << 30, "more than its disk may hold: a hole stays one"
    done = sandbox.restore("then", "/work/sub", to="/copies/of/it", snapshot_first=True)
    assert (done.there_before, done.path) == (False, "/copies/of/it")
    assert shell(sandbox, "stat -c '%a %u:%g' /copies/of/it && cat /copies/of/it/deep") == "2751 5:6\ndeep\n"
    assert [view.id for view in sandbox.snapshots.list()][-1] == done.snapshot
    sandbox.restore("then", "/work/link", to="/copies/")
    assert shell(sandbox, "readlink /copies/link") == "../elsewhere\n"
    sandbox.restore("then", "/work/file", to="/copies/sub/../x/./file")
    assert shell(sandbox, "cat /copies/x/file") == "then\n"
    shell(sandbox, "rm /work/file && mkdir -p /work/file/full")
    with pytest.raises(SandkeepError):
        sandbox.restore("then", "/work/file")
    assert shell(sandbox, "ls /work/file") == "full\n", "a folder that is not empty is not taken away for a file"
    for path, to in (
        ("/", None),
        ("/work", "/"),
        ("work", None),
        ("/work", "relative"),
        ("/wo\0rk", None),
    ):
        with pytest.raises(InvalidArgument):
            sandbox.restore("then", path, to=to)
    with pytest.raises(InvalidArgument if runtime == "runc" else NotFound):  # gVisor keeps a FIFO to itself
        sandbox.restore("then", "/work/pipe")
    with pytest.raises(NotFound):
        sandbox.restore("then", "/no/such")
    with pytest.raises(NotFound):
        sandbox.restore("nope", "/work")
    sandbox.stop()
    with pytest.raises(Conflict):
        sandbox.restore("then", "/work/sub", no_resume=True)
    sandbox.refresh()
    assert sandbox.phase == "stopped"
    sandbox.restore("then", "/work/sub")
    sandbox.refresh()
    assert sandbox.phase == "running"
    assert "sandbox.files_restored" in {event.kind for event in client.events()}


@NODE_ALONE
def test_a_restore_into_a_full_disk_says_so(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime)
    shell(sandbox, "head -c 60M /dev/zero > /big && echo small > /small")
    sandbox.snapshot("then")
    shell(sandbox, "rm /big && (head -c 600M /dev/zero > /filler || true); sync")
    with pytest.raises(NoCapacity):
        sandbox.restore("then", "/big")
    assert shell(sandbox, "ls / | grep -c -e '^big$' -e sandkeep || true").strip() == "0"
    shell(sandbox, "rm /filler; sync")
    sandbox.restore("then", "/small")
    assert instance.fsck() == []


def test_the_command_line(client: Client, instance: Instance, tmp_path: Path) -> None:
    sandbox = box(client, "runc", name="lines")
    shell(sandbox, "mkdir -p /app/sub && echo v1 > /app/config && echo x > /app/sub/x && ln -s config /app/link")
    sandbox.snapshot("v1")
    shell(sandbox, "echo version-2 > /app/config && rm /app/sub/x && echo y > /app/y")
    run: Callable[..., Any] = instance.run
    listed = run("snapshot", "ls", "lines@v1:/app").stdout.splitlines()
    assert listed[0].split() == ["MODE", "OWNER", "SIZE", "CHANGED", "NAME"]
    assert [line.split()[-1] for line in listed[1:]] == ["config", "config", "sub"]
    assert "link -> config" in listed[2]
    assert [one["name"] for one in instance.json("snapshot", "ls", "lines@v1:/app")] == ["config", "link", "sub"]
    assert "app" in run("snapshot", "ls", "lines@v1").stdout
    assert run("snapshot", "ls", "lines:/app/config").stdout.count("\n") == 2
    assert run("snapshot", "cat", "lines@v1:/app/config").stdout == "v1\n"
    assert run("snapshot", "cat", "lines:/app/config").stdout == "version-2\n"
    assert instance.json("snapshot", "cat", "lines@v1:/app/config")["content"] == "v1\n"
    assert run("snapshot", "cp", "lines@v1:/app", str(tmp_path), check=False).returncode == 2
    run("snapshot", "cp", "-r", "lines@v1:/app", str(tmp_path))
    assert (tmp_path / "app/sub/x").read_text() == "x\n"
    run("snapshot", "cp", "lines@v1:/app/link", str(tmp_path / "one"))
    assert (tmp_path / "one").read_text() == "v1\n"
    told = run("diff", "lines@v1", "--files")
    assert set(told.stdout.splitlines()) >= {"~ /app/config  3 B -> 10 B", "- /app/sub/x  2 B", "+ /app/y  2 B"}
    assert "1 removed" in told.stderr
    assert run("diff", "lines@v1", "lines@v1").stderr == "no difference\n"
    assert instance.json("diff", "lines@v1", "lines", "--packages") == {"packages": []}
    assert instance.json("diff", "lines@v1", "lines")["counts"]["removed"] == 1
    assert run("restore", "lines@v1:/app/config").stdout == "lines:/app/config is replaced by v1\n"
    assert shell(sandbox, "cat /app/config") == "v1\n"
    said = run("restore", "lines@v1:/app", "--to", "/old/", "--snapshot-first")
    assert "lines:/old/app is back from v1 (2 files, 2 folders, " in said.stdout
    assert "the moment before is kept: lines@snp_" in said.stderr
    assert json.loads(run("restore", "lines@v1:/app/sub", "--json").stdout)["files"] == 1
    for wrong in (
        ("snapshot", "cat", "lines@v1"),
        ("snapshot", "ls", "lines@v1:app"),
        ("restore", "lines:/app"),
        ("diff",),
    ):
        assert run(*wrong, check=False).returncode == 2, wrong
    for missing in (("snapshot", "ls", "lines@no:/"), ("snapshot", "cat", "lines@v1:/no"), ("diff", "lines@v1", "no")):
        assert run(*missing, check=False).returncode == 3, missing
