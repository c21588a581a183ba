"""The folders of one runtime below the run folder, and the file system that keeps its logs small.

<run folder>/<kind>/state          the runtime's own folder
<run folder>/<kind>/machines/<id>  bundles
<run folder>/<kind>/logs/<id>      what runtime and console print: a tmpfs of its own with a size, since whoever is
                                   root inside can print without end, and the run folder is the host's memory
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sandkeep.drivers.runtime._oci.config import AGENT_FOLDER
from sandkeep.lib import process

_LOGS_SIZE = "32m"
_LOG_LIMIT = 256 << 10
"""Bytes after which a log starts again."""


@dataclass(frozen=True)
class Folders:
    base: Path

    @property
    def state(self) -> Path:
        return self.base / "state"

    @property
    def logs(self) -> Path:
        return self.base / "logs"

    def bundle(self, machine_id: str) -> Path:
        return self.base / "machines" / machine_id

    def log(self, machine_id: str) -> Path:
        return self.logs / machine_id

    async def open(self) -> None:
        for folder in (self.base, self.state, self.base / "machines", self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.ismount(self.logs):
            options = f"size={_LOGS_SIZE},mode=0700,nosuid,nodev,noexec"
            await process.run(["mount", "-t", "tmpfs", "-o", options, "sandkeep-logs", str(self.logs)], timeout=10)

    async def close(self) -> None:
        if os.path.ismount(self.logs):
            await process.run(["umount", "--lazy", str(self.logs)], timeout=10, check=False)
        shutil.rmtree(self.base, ignore_errors=True)

    def ids(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return set(os.listdir(self.base / "machines"))
        return set()

    def create(self, machine_id: str, config: dict[str, Any]) -> Path:
        """The bundle of a new machine. Raises FileExistsError: an id is never used twice."""
        bundle = self.bundle(machine_id)
        bundle.mkdir(mode=0o700)
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def agent(self, machine_id: str) -> str:
        """Name of the folder that is mounted as its agent; empty when the bundle is not whole."""
        try:
            mounts = json.loads((self.bundle(machine_id) / "config.json").read_bytes())["mounts"]
            return next((Path(one["source"]).name for one in mounts if one["destination"] == AGENT_FOLDER), "")
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def remove(self, machine_id: str) -> None:
        shutil.rmtree(self.bundle(machine_id), ignore_errors=True)
        for path in (self.log(machine_id), self.panic(machine_id)):
            path.unlink(missing_ok=True)

    def panic(self, machine_id: str) -> Path:
        return self.logs / f"{machine_id}.panic"

    def open_log(self, machine_id: str) -> IO[bytes]:
        """For the runtime to write to. Appending, so that `trim` may cut it under the writer."""
        return open(self.log(machine_id), "ab")

    def trim(self, machine_id: str) -> None:
        for path in (self.log(machine_id), self.panic(machine_id)):
            with contextlib.suppress(OSError):
                if path.stat().st_size > _LOG_LIMIT:
                    os.truncate(path, 0)

    def printed(self, machine_id: str) -> int:
        with contextlib.suppress(OSError):
            return self.log(machine_id).stat().st_size
        return 0

    def tail(self, machine_id: str, limit: int) -> str:
        """The last bytes of what was printed, the runtime's own panic last."""
        text = b""
        for path in (self.log(machine_id), self.panic(machine_id)):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
                text += file.read(limit)
        return text[-limit:].decode(errors="replace") if limit > 0 else ""
