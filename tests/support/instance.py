"""A whole instance for system tests: real daemons, real runtimes, its own folders, ports and names.

The pool with its templates is built once and cached (`python -m support.instance` builds it ahead, while there still is
a network); a test run works on a copy. All of it goes away at the end, also when tests failed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sandkeep
from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NotFound

CACHE = Path(os.environ.get("SANDKEEP_TEST_CACHE", "/var/cache/sandkeep-tests"))
POOL_SIZE = "12GiB"
SMALLER = "rm -rf /usr/share /usr/lib/python3* /usr/lib/*/perl* /var/lib/dpkg /var/cache"
"""Inside: what a test that only writes and reads a file does not need, so that an archive has few pieces."""
_SOURCES = ("drivers/images", "drivers/disk", "engine/records.py", "domain/node.py")


def _cache_key(recipe: str) -> str:
    digest = hashlib.sha256(recipe.encode())
    root = Path(sandkeep.__file__).parent
    for source in _SOURCES:
        for path in sorted((root / source).rglob("*.py") if (root / source).is_dir() else [root / source]):
            digest.update(path.read_bytes())
    return f"{recipe}-{digest.hexdigest()[:16]}"


class Instance:
    """Runs `sandkeep` as people do: setup, up, commands, kill -9, down, purge."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.python = sys.executable
        """Of the version that `run` takes."""
        self.env = {
            **os.environ,
            "SANDKEEP_INSTANCE": name,
            "SANDKEEP_CONFIG_FOLDER": str(root / "etc"),
            "SANDKEEP_DATA_FOLDER": str(root / "data"),
            "SANDKEEP_RUN_FOLDER": str(root / "run"),
            "SANDKEEP_LOG_FOLDER": str(root / "log"),
            "SANDKEEP_POOL_SIZE": POOL_SIZE,
            "SANDKEEP_POOL_SPARSE": "1",
            "XDG_CONFIG_HOME": str(root / "xdg"),
        }
        for name in ("SANDKEEP_URL", "SANDKEEP_KEY"):
            self.env.pop(name, None)

    # -- making one

    @classmethod
    @contextlib.contextmanager
    def made(cls, recipe: str, **env: str) -> Iterator["Instance"]:
        """Up when the body runs; nothing of it is left afterwards."""
        image = build_cache(recipe)
        root = Path(tempfile.mkdtemp(prefix="sandkeep-test-", dir="/var/tmp"))
        root.chmod(0o711)
        instance = cls("t" + root.name[-8:].lower().replace("_", "x"), root)
        instance.env.update(env)
        try:
            (root / "data").mkdir()
            subprocess.run(["cp", "--sparse=always", str(image / "pool.img"), str(root / "data/pool.img")], check=True)
            shutil.copytree(image / "templates", root / "data/node/templates")
            instance.run("setup", "--template", recipe)
            instance.run("up")
            yield instance
        finally:
            instance.close()

    def close(self) -> None:
        end = time.monotonic() + 60
        while True:  # what starts just now in another instance holds a copy of every mount
            failed = self.run("purge", "--yes", check=False)
            if not failed.returncode or time.monotonic() > end:
                break
        if failed.returncode:
            sys.stderr.write(f"purge failed:\n{failed.stderr}\n")
            raise RuntimeError(f"the test's instance in {self.root} could not be purged: {failed.stderr}")
        shutil.rmtree(self.root)

    # -- using it

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 180, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """`sandkeep ARGUMENTS`."""
        done = subprocess.run(
            [self.python, "-m", "sandkeep.cli.main", *arguments],
            env={**self.env, **options.pop("env", {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )
        if check and done.returncode:
            raise AssertionError(
                f"sandkeep {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    @property
    def config(self) -> dict[str, str]:
        saved = json.loads((self.root / "xdg/sandkeep/config.json").read_text())
        return dict(saved["instances"][self.name])

    def pid(self, daemon: str) -> int | None:
        folder = self.root / "run" / ("server" if daemon == "server" else "")
        text = (folder / f"{daemon}.pid").read_text().strip()
        return int(text) if text else None

    def kill(self, *daemons: str) -> None:
        """kill -9, and wait until they are gone. The keeper starts them again."""
        for daemon in daemons or ("server", "runner"):
            pid = self.pid(daemon)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists(), 5)

    def ensure_up(self) -> None:
        """Quick when it is up, since every test asks for it."""
        if not self._answers():
            self.run("up")
            until(self._answers)

    def _answers(self) -> bool:
        try:
            pids = [int((self.root / f"run/{name}.pid").read_text()) for name in ("keeper", "runner", "server/server")]
            with urllib.request.urlopen(self.config["url"] + "/readyz", timeout=2) as answer:
                # A server whose runner died a moment ago may not know it yet.
                return answer.status == 200 and all(Path(f"/proc/{pid}/exe").exists() for pid in pids)
        except (OSError, ValueError):
            return False

    def clean(self, client: Client, keep: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        for sandbox in list(Sandbox.list(client=client)):
            if sandbox.id not in keep:
                with contextlib.suppress(NotFound):  # an ephemeral one may go by itself
                    sandbox.delete()

    def fsck(self) -> list[dict[str, str]]:
        done = self.run("fsck", "--json", check=False)
        return list(json.loads(done.stdout)["findings"])

    def logs(self) -> str:
        parts = []
        for path in sorted((self.root / "log").glob("*.log")):
            parts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)


def client_of(instance: Instance) -> Client:
    saved = instance.config
    return Client(saved["url"], saved["key"])


def until(condition: Callable[[], Any], timeout: float = 10.0, wait: float = 0.02) -> Any:
    """The condition's first true value; fails after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"it did not become true within {timeout:g} s")
        time.sleep(wait)


@contextlib.contextmanager
def pool_with_only(instance: Instance, left: int) -> Iterator[None]:
    """Somebody else's file fills the pool but for so many bytes."""
    pool = instance.root / "data/pool"
    filler = pool / "filler"
    try:
        with filler.open("wb") as file:
            space = os.statvfs(pool)
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left)
            os.fsync(file.fileno())
        yield
    finally:
        filler.unlink()
        os.sync()


def build_cache(recipe: str) -> Path:
    """Folder with pool.img and the template's record. Built when it is missing; needs the network then."""
    folder = CACHE / _cache_key(recipe)
    if (folder / "templates").is_dir():
        return folder
    fresh = Path(tempfile.mkdtemp(prefix=".building-", dir=_made(CACHE)))
    fresh.chmod(0o711)
    instance = Instance("tcache", fresh)
    try:
        instance.run("setup", "--template", recipe, timeout=900)
        subprocess.run(["umount", str(fresh / "data/pool")], check=True)
        (fresh / "out").mkdir()
        shutil.move(fresh / "data/pool.img", fresh / "out/pool.img")
        shutil.move(fresh / "data/node/templates", fresh / "out/templates")
        shutil.rmtree(folder, ignore_errors=True)
        (fresh / "out").rename(folder)
    finally:
        instance.run("purge", "--yes", check=False)
        shutil.rmtree(fresh, ignore_errors=True)
    for old in CACHE.glob(f"{recipe}-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["test"]:
        print(build_cache(wanted))
