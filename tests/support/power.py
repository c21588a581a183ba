"""A host whose power can be cut: the data folder of an instance in one image, which is cloned at a moment.

host.img holds an ext4, and in it database, journal, records and the pool's file; it lies on a btrfs of the test's own.
What the file systems inside have not written to their disk at the moment of the clone is lost, as with a power cut: a
clone of the image *under* a mounted file system holds no page cache of it. Afterwards `lose` plays the rest: no process,
no mount, no namespace, no control group and an empty run folder are left.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sandkeep.app.settings import derive
from support.instance import Instance, build_cache, until
from support.machines import control_groups

_FICLONE = 0x40049409
_OUTER, _HOST = "12G", "16G"


class Host:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.outer = work / "outer"
        self.instance = Instance("t" + work.name[-8:].lower().replace("_", "x"), work)
        self._cuts = 0
        self._disk = self.outer / "host.img"

    @classmethod
    @contextlib.contextmanager
    def made(cls, recipe: str) -> Iterator["Host"]:
        """Up when the body runs; nothing of it is left afterwards. The pool's file has its room, as on hosts of people, and
        is not met by the disk around it being full."""
        image = build_cache(recipe)
        work = Path(tempfile.mkdtemp(prefix="sandkeep-power-", dir="/var/tmp"))
        work.chmod(0o711)
        host = cls(work)
        try:
            host._format()
            pool = host.instance.root / "data/pool.img"
            subprocess.run(["cp", "--sparse=always", str(image / "pool.img"), str(pool)], check=True)
            _run("fallocate", "-l", str(pool.stat().st_size), str(pool))
            host.instance.env["SANDKEEP_POOL_SPARSE"] = ""
            shutil.copytree(image / "templates", host.instance.root / "data/node/templates")
            _run("sync", "-f", str(host.instance.root / "data"))
            host.instance.run("setup", "--template", recipe)
            host.instance.run("up")
            yield host
        finally:
            host._close()

    def _format(self) -> None:
        for folder in (self.outer, self.instance.root / "data"):
            folder.mkdir()
        _run("truncate", "-s", _OUTER, str(self.work / "outer.img"))
        _run("mkfs.btrfs", "-q", str(self.work / "outer.img"))
        _run("mount", "-o", "loop,discard=async", str(self.work / "outer.img"), str(self.outer))
        _run("truncate", "-s", _HOST, str(self._disk))
        _run("mkfs.ext4", "-q", "-E", "nodiscard", str(self._disk))
        self._mount(self._disk)

    def _mount(self, image: Path) -> None:
        _run("mount", "-o", "loop", str(image), str(self.instance.root / "data"))

    def cut(self) -> Path:
        """The disk as it is at this instant."""
        self._cuts += 1
        clone = self.outer / f"cut-{self._cuts}.img"
        with open(self._disk, "rb") as source, open(clone, "wb") as target:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        return clone

    def lose(self) -> None:
        """All that a host holds in memory."""
        for name in ("keeper", "runner", "server"):
            with contextlib.suppress(OSError, ValueError):
                pid = self.instance.pid(name)
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    until(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists(), 10)  # type: ignore[misc]
        with contextlib.suppress(OSError, ValueError):  # its command names no folder of the instance
            os.kill(int(json.loads((self.instance.root / "run/resolver.json").read_text())["pid"]), signal.SIGKILL)
        until(lambda: not self._kill_all(), 20)
        for group in sorted(self._groups(), reverse=True):
            with contextlib.suppress(FileNotFoundError):
                until(lambda group=group: _removed(group), 5)  # type: ignore[misc]
        for mount in self._mounts():
            if mount not in (str(self.outer), str(self.instance.root / "data")):
                _run("umount", "-l", mount)
        while (data := str(self.instance.root / "data")) in self._mounts():
            _run("umount", "-l", data)
        self._forget_network()
        shutil.rmtree(self.instance.root / "run", ignore_errors=True)

    def _kill_all(self) -> list[int]:
        """Processes in the instance's control groups, or that name its folders; killed, and returned."""
        found = []
        for group in self._groups():  # what is frozen does not die
            for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):
                    (group / name).write_text(text)
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                ours = f"sandkeep-{self.instance.name}/" in (folder / "cgroup").read_text()
                if (folder / "exe").exists() and (ours or f"{self.instance.root}/run" in command):
                    found.append(int(folder.name))
                    os.kill(found[-1], signal.SIGKILL)
        return found

    def _groups(self) -> list[Path]:
        return control_groups(f"*sandkeep-{self.instance.name}*/**/")

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [target for line in reversed(lines) if (target := line.split()[4]).startswith(str(self.work))]

    def _forget_network(self) -> None:
        prefix = str(derive(self.instance.name)["prefix"])
        listed = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, check=True)
        for item in json.loads(listed.stdout)["nftables"]:
            table = item.get("table")
            if table and table["name"].startswith(f"{prefix}_"):
                _run("nft", "delete", "table", table["family"], table["name"])
        until(lambda: not [name for _, name in socket.if_nameindex() if name.startswith(f"{prefix}v")], 10)

    def boot(self, image: Path) -> None:
        """The host comes back with this disk."""
        self._disk = image
        self._mount(image)
        self.instance.run("up")

    def _close(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.instance.run("purge", "--yes", check=False)  # what it changed on the real host goes back
        self.lose()
        if str(self.outer) in self._mounts():
            # Another instance that started meanwhile may hold a copy of the mounts below: it takes them along when it ends.
            _run("umount", "-l", str(self.outer))
        left = self._mounts()
        if left:
            sys.stderr.write(f"still mounted: {left}\n")
            raise RuntimeError(f"the test's host in {self.work} is still mounted")
        shutil.rmtree(self.work)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(argv)}: {done.stderr}")
