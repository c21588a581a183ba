"""Files in and out: single ones and trees, of every size and kind, in bounded memory, and never outside the target."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import AlreadyExists, InvalidArgument, NoCapacity, NotFound
from support.instance import Instance, until

MIB = 1 << 20
BLOCK = os.urandom(MIB)
NAMES = ("plain", "with space", "ünïcödé-日本語", "quote'\"$x", "-dash", "new\nline")


@pytest.fixture
def box(client: Client, runtime: str) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="256MiB", name="files", client=client)


def test_single_files(box: Sandbox) -> None:
    files = box.files
    for name in NAMES:
        files.write(f"/home/user/in/{name}", f"text of {name}")
        assert files.read_text(f"in/{name}") == f"text of {name}"
    assert sorted(one.name for one in files.list("in")) == sorted(NAMES)
    files.write("empty", b"")
    assert (files.read("empty"), files.stat("empty").size) == (b"", 0)
    files.write("in/plain", b"\0\xff" * 10)
    found = files.stat("in/plain")
    assert (found.size, found.type, found.owner, found.path) == (20, "file", "user", "/home/user/in/plain")
    files.make_dir("a/b/c")
    with pytest.raises(AlreadyExists):
        files.make_dir("a/b/c", exist_ok=False)
    assert files.move("in/plain", "a/b/moved").path == "/home/user/a/b/moved"
    assert not files.exists("in/plain")
    files.remove("a")
    files.remove("a")
    assert not files.exists("a/b/moved")
    for missing in (lambda: files.read("a/b/moved"), lambda: files.stat("nowhere"), lambda: files.list("nowhere")):
        with pytest.raises(NotFound):
            missing()
    with pytest.raises(InvalidArgument):
        files.list("empty")
    files.write("/root/of-root", "x", user="root")
    assert files.stat("/root/of-root").owner == "root"


def test_an_upload_that_fails_on_its_way_says_why(box: Sandbox) -> None:
    """Also when far more was to come than what the agent takes before it answers."""
    with pytest.raises(InvalidArgument, match="is a directory"):
        box.files.write("/home/user", BLOCK * 8)
    with pytest.raises(NoCapacity, match="no space left"):
        box.files.write("/dev/shm/large", BLOCK * 100)
    assert box.exec("true").exit_code == 0


def test_the_root_folder_stays(box: Sandbox) -> None:
    for name in ("/", "//", "/home/..", "/."):
        with pytest.raises(InvalidArgument, match="root folder"):
            box.files.remove(name)
    assert box.exec("ls /bin/sh").exit_code == 0


def test_changes_are_seen_as_they_happen(box: Sandbox) -> None:
    box.files.make_dir("watched/deep")
    seen: list[tuple[str, str]] = []

    def follow() -> None:
        for event in box.files.watch("watched", recursive=True):
            seen.append((event.name, event.kind))
            if event.name == "last":
                return

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: box.exec("touch watched/first; sleep 0.05; rm -f watched/first; true") and seen, timeout=20)
    box.exec("echo x > watched/deep/file; mv watched/deep/file watched/other; rm watched/other; touch watched/last")
    thread.join(20)
    assert not thread.is_alive()
    kinds = {(name.rpartition("/")[2], kind) for name, kind in seen}
    assert {("file", "create"), ("file", "write"), ("other", "create"), ("other", "remove")} <= kinds, kinds


def resident(pid: int, what: str = "VmHWM") -> int:
    """Bytes that a process of the host has, or had at most, in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) << 10


def agents_memory(box: Sandbox) -> int:
    return int(box.exec("awk '/^VmRSS/ {print $2}' /proc/1/status").stdout) << 10


def test_300_mb_in_and_out_in_bounded_memory(box: Sandbox, instance: Instance) -> None:
    server = instance.pid("server")
    assert server is not None
    box.files.write("warm", BLOCK * 4)
    Path(f"/proc/{server}/clear_refs").write_text("5")
    before, agent = resident(server), agents_memory(box)

    def content() -> Iterator[bytes]:
        for _ in range(300):
            yield BLOCK

    box.files.write("big", content())
    assert box.files.stat("big").size == 300 * MIB
    grown = agents_memory(box) - agent
    count, position = 0, 0
    for chunk in box.files.read_stream("big"):
        assert chunk == (BLOCK + BLOCK)[position : position + len(chunk)]
        count, position = count + len(chunk), (position + len(chunk)) % MIB
    assert count == 300 * MIB
    assert resident(server) - before < 48 * MIB
    assert max(grown, agents_memory(box) - agent) < 48 * MIB


def make_tree(root: Path) -> Path:
    for name in NAMES:
        (root / name).mkdir(parents=True)
        (root / name / name).write_text(name)
    (root / "empty-folder").mkdir()
    (root / "empty").touch()
    (root / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("plain/plain")
    (root / "dangling").symlink_to("nowhere")
    (root / "bytes").write_bytes(BLOCK)
    with (root / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
    os.mkfifo(root / "fifo")
    return root


def listing(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = (path.stat().st_size, path.stat().st_mode & 0o777, hash(path.read_bytes()[: 2 * MIB]))
        elif path.is_dir():
            found[name] = "folder"
    return found


def test_cp_both_ways_keeps_a_tree(box: Sandbox, instance: Instance, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    up = instance.run("cp", "-r", str(tree), "files:/home/user/copy", timeout=60)
    assert "fifo" in up.stderr
    assert box.exec("copy/run.sh; cat copy/link; echo; readlink copy/dangling; stat -c %U copy/bytes").stdout.split() == [
        "ran", "plain", "nowhere", "user",
    ]  # fmt: skip
    if box.runtime == "runc":  # gVisor shows its guest no holes
        assert int(box.exec("du -k copy/sparse | cut -f1").stdout) < 1024
    box.exec("mkfifo copy/fifo-inside")
    instance.run("cp", "-r", "files:/home/user/copy", str(tmp_path / "back"), timeout=60)
    assert listing(tmp_path / "back") == listing(tree)
    if box.runtime == "runc":
        assert (tmp_path / "back/sparse").stat().st_blocks * 512 < MIB
    assert not (tmp_path / "back/fifo-inside").exists()
    instance.run("cp", str(tree / "run.sh"), "files:/home/user/alone.sh")
    assert box.exec("./alone.sh").stdout == "ran\n"
    said = instance.run("cp", "files:/home/user/alone.sh", "-").stdout
    assert said == "#!/bin/sh\necho ran\n"
    assert instance.run("cp", "files:/no/such", str(tmp_path), check=False).returncode == 3


def test_a_guests_symlink_leads_nothing_outside_the_target(box: Sandbox, tmp_path: Path) -> None:
    """First a link to a folder of the host, then, for the same name, a real folder with a file in it."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    box.exec(f"mkdir -p bad && cd bad && ln -s {outside} door && ln -s ../../../../../../etc up && ln -s / root")
    box.files.read_tree("bad", target)
    assert os.listdir(outside) == []
    box.exec("cd bad && rm door up && mkdir door up && echo evil > door/file && echo evil > up/file")
    box.files.read_tree("bad", target)
    assert os.listdir(outside) == []
    assert (target / "door/file").read_text() == "evil\n"
    assert not Path("/etc/file").exists()
    box.exec("ln -s /etc/passwd bad/leak")
    result = box.files.read_tree("bad", target)
    assert any("leak" in line for line in result.skipped)
    assert not os.path.lexists(target / "leak")


def test_a_file_to_a_link_of_the_guest_stays_in_the_guest(box: Sandbox) -> None:
    box.exec("ln -s /etc/hostname name; ln -s loop loop")
    before = Path("/etc/hostname").read_text() if Path("/etc/hostname").exists() else None
    box.files.write("name", "inside", user="root")
    after = Path("/etc/hostname").read_text() if Path("/etc/hostname").exists() else None
    assert before == after
    with pytest.raises((InvalidArgument, NotFound)):
        box.files.read("loop")
