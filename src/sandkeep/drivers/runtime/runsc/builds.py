"""Builds of runsc that were put aside: a memory image is restored by the very build that saved it, whatever was installed
since. Below the folder, each lies in one named after its content."""

import os
import shutil
import threading
from pathlib import Path

from sandkeep.lib.files import sync_folder, written_durably
from sandkeep.telemetry.log import log

_NAME = "runsc"


class Builds:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = threading.Lock()
        """The first pauses of an instance may come together, and all of them write the same file."""

    def find(self, sha256: str) -> Path | None:
        path = self._folder / sha256 / _NAME
        return path if path.exists() else None

    def keep(self, source: Path, sha256: str) -> Path:
        """`source`: may be a process's /proc/<pid>/exe, which is there also when its file was replaced. Durable when it
        returns. Blocks. Raises OSError."""
        with self._writing:
            found = self.find(sha256)
            if found:
                return found
            home = self._folder / sha256
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(source, "rb") as original, written_durably(home / _NAME, 0o755) as copy:
                shutil.copyfileobj(original, copy, 1 << 20)
            sync_folder(self._folder)
            log("build.kept", sha256=sha256)
            return home / _NAME

    def sweep(self, needed: set[str]) -> None:
        """Remove all others. Blocks."""
        for path in sorted(self._folder.glob("*")):
            if path.name not in needed:
                log("build.removed", sha256=path.name)
                shutil.rmtree(path)


def identity(path: Path) -> tuple[int, int, int, int]:
    """Of a file as it is now; another build has another one."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
