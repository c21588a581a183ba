"""What a root file system must be before a runtime sees it, and how ours are left after a build.

The engine calls `check_root` on every template, whoever made it. Nothing here follows a link.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sandkeep.domain.errors import InvalidArgument

AGENT_FOLDER = ".sandkeep"

_FOLDERS = ("dev", "proc", "sys", "etc", "run")
"""Runtimes mount or write here; runc 1.1 with /dev as a link to a host's folder makes device links in that folder."""
_OPTIONAL_FOLDERS = ("dev/pts", "dev/shm", "dev/mqueue", "sys/fs", "sys/fs/cgroup", "tmp", AGENT_FOLDER, "etc/ssl")
_OPTIONAL_FILES = ("etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/machine-id", "etc/passwd", "etc/group")

_EMPTIED = ("dev", "proc", "sys", "run", "tmp", "var/tmp", "var/lib/apt/lists", "var/cache/apt", "var/log")
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_WRITTEN = {
    "etc/hosts": _HOSTS,
    "etc/resolv.conf": "",
    "etc/machine-id": "",
    "etc/default/locale": "LANG=C.UTF-8\n",
}
_REMOVED = ("etc/hostname", "var/lib/dbus/machine-id", "etc/apt/apt.conf.d/99mmdebstrap")


def check_root(root: Path) -> None:
    """Raises InvalidArgument, with the reason, for a root file system that a runtime must not be given: what it mounts
    over or writes to has to be a real folder or a real file of this very tree."""
    with _opened(root) as top:
        for path in (*_FOLDERS, *_OPTIONAL_FOLDERS, *_OPTIONAL_FILES):
            mode = _mode(top, path)
            if mode is None:
                if path in _FOLDERS:
                    raise InvalidArgument(f"The root file system has no folder /{path}", path=f"/{path}")
            elif not (stat.S_ISREG(mode) if path in _OPTIONAL_FILES else stat.S_ISDIR(mode)):
                kind = "link" if stat.S_ISLNK(mode) else "file of another kind"
                wanted = "file" if path in _OPTIONAL_FILES else "folder"
                raise InvalidArgument(f"/{path} is a {kind}, where a real {wanted} has to be", path=f"/{path}")


@contextlib.contextmanager
def _opened(root: Path) -> Iterator[int]:
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument("The root file system is not a folder", path=str(root)) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _mode(top: int, path: str) -> int | None:
    """The mode of what is at this path; None when it, or a folder before it, is not there. Every folder on the way has
    been checked by the caller, or is checked here by not being followed."""
    fd = os.dup(top)
    try:
        *folders, name = path.split("/")
        for folder in folders:
            try:
                below = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise InvalidArgument(f"/{path} lies behind something that is not a folder", path=path) from error
            os.close(fd)
            fd = below
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None
    finally:
        os.close(fd)


def settle(root: Path, apt_sources: str) -> None:
    """Make a freshly built tree the same for everyone: nothing of the host, of the build or of the moment stays."""
    for folder in _EMPTIED:
        _empty(root / folder)
    for path, text in _WRITTEN.items():
        _write(root / path, text)
    for path in _REMOVED:
        (root / path).unlink(missing_ok=True)
    for listed in (root / "etc/apt").glob("sources.list*"):
        shutil.rmtree(listed) if listed.is_dir() else listed.unlink()
    (root / "etc/apt/sources.list.d").mkdir()
    _write(root / "etc/apt/sources.list.d/debian.sources", apt_sources)
    (root / AGENT_FOLDER).mkdir(mode=0o755, exist_ok=True)
    # apt does not work without them
    for path, mode in (("var/lib/apt/lists/partial", 0o700), ("var/cache/apt/archives/partial", 0o700)):
        (root / path).mkdir(mode=mode, parents=True, exist_ok=True)


def _empty(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write(path: Path, text: str) -> None:
    """As a new regular file, whatever was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    path.chmod(0o644)
