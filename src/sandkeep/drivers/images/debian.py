"""Debian root file systems from the distribution's own packages, by mmdebstrap: the built-in templates start here."""

import asyncio
import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread

from sandkeep.domain.errors import Internal, InvalidArgument, Unavailable
from sandkeep.drivers.images import sources
from sandkeep.drivers.images.root import check_root, settle
from sandkeep.lib import process

USER, USER_ID = "user", 1000

_TEST = ("python3", "sudo")
_BASE = (*_TEST, "ca-certificates", "curl", "git", "nodejs", "procps", "python3-pip", "python3-venv")
_PROGRAMS = (*_TEST, "openssh-client", "postgresql")
RECIPES: dict[str, tuple[str, ...]] = {"base": _BASE, "test": _TEST, "programs": _PROGRAMS}
"""Name -> packages on top of the smallest Debian that has apt. What programs has is for tests of snapshots and forks."""

_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_KEPT = "/usr/share/doc/*/copyright"
_MAKE_USER = (
    f'chroot "$1" groupadd --gid {USER_ID} {USER}',
    f'chroot "$1" useradd --uid {USER_ID} --gid {USER_ID} --create-home --shell /bin/bash {USER}',
    f'install -m 0440 /dev/null "$1/etc/sudoers.d/{USER}"',
    f'echo "{USER} ALL=(ALL:ALL) NOPASSWD: ALL" > "$1/etc/sudoers.d/{USER}"',
)
_NO_PACKAGES = ("Failed to fetch", "Temporary failure resolving", "Unable to locate package", "Unable to connect")
_KEPT_LINES = 40
_PATIENCE = 'Acquire::Retries "5"'
"""An archive that fails for a moment; what the host says of it counts more."""


@dataclass(frozen=True)
class DebianSettings:
    apt_folder: Path = Path("/etc/apt")
    """Whose sources.list and sources.list.d name the archive."""
    timeout: float = 1200.0
    """Seconds for one build."""


class DebianBuilder:
    """Fulfils contracts.images.RootBuilder. Runs as root; the build has mount and process namespaces of its own, so
    that nothing it mounts or starts outlives it."""

    def __init__(self, settings: DebianSettings | None = None) -> None:
        self._settings = settings or DebianSettings()

    def recipes(self) -> tuple[str, ...]:
        return tuple(RECIPES)

    async def build(self, recipe: str, folder: Path, progress: Callable[[str], None]) -> None:
        if recipe not in RECIPES:
            raise InvalidArgument(f"There is no recipe {recipe!r}", recipes=list(RECIPES))
        archives = sources.for_release(await anyio.to_thread.run_sync(host_sources, self._settings.apt_folder))
        if not archives:
            raise Unavailable(
                "The host's apt sources name no Debian archive", hint=f"Add one below {self._settings.apt_folder}."
            )
        last: deque[str] = deque(maxlen=_KEPT_LINES)

        def heard(line: str) -> None:
            last.append(line)
            progress(line)

        try:
            dump = await process.run(["apt-config", "dump"], timeout=30)
            with tempfile.NamedTemporaryFile("w", suffix=".list") as listed, _lines(heard) as output:
                listed.write("".join(f"{source.line()}\n" for source in archives))
                listed.flush()
                argv = command(recipe, folder, Path(listed.name), sources.kept_options(dump.stdout))
                await process.run(
                    argv, timeout=self._settings.timeout, output=output, env=_environment(), umask=0o022, may_gain=True
                )  # scripts of packages may expect both
        except process.ProgramMissingError as error:
            raise Unavailable(f"{error}", hint="Install mmdebstrap (a package of Debian and Ubuntu).") from error
        except (process.ProgramError, process.ProgramTimeoutError) as error:
            log = "\n".join(last)
            if any(sign in log for sign in _NO_PACKAGES):
                raise Unavailable(
                    "The Debian packages cannot be had", hint="Does apt-get update work?", log=log
                ) from error
            raise Internal(f"The build of {recipe!r} failed: {last[-1] if last else error}", log=log) from error
        await anyio.to_thread.run_sync(settle, folder, sources.for_guest(archives))
        check_root(folder)


def command(recipe: str, folder: Path, listed: Path, options: list[str]) -> list[str]:
    """The command line of one build."""
    excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    return [
        *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        f"--include={','.join(RECIPES[recipe])}",
        *excludes,
        f"--dpkgopt=path-include={_KEPT}",
        *(f"--aptopt={option}" for option in (_PATIENCE, *options)),
        *(f"--customize-hook={step}" for step in _MAKE_USER),
        *(sources.RELEASE, str(folder), str(listed)),
    ]


def host_sources(apt_folder: Path) -> list[sources.Source]:
    """All that the host's apt would use, Debian's or not."""
    found: list[sources.Source] = []
    for path in (apt_folder / "sources.list", *sorted((apt_folder / "sources.list.d").glob("*"))):
        if path.is_file() and path.suffix in {".list", ".sources"}:
            read = sources.read_deb822 if path.suffix == ".sources" else sources.read_one_line
            found += read(path.read_text(errors="replace"))
    return found


def _environment() -> dict[str, str]:
    """Of the host's its proxies, and nothing else that would make two builds differ."""
    ours = process.clean_environment(*process.NETWORK_VARIABLES)
    return {**ours, "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": tempfile.gettempdir()}


@contextlib.contextmanager
def _lines(heard: Callable[[str], None]) -> Iterator[BinaryIO]:
    """A pipe's writing end; each line written to it is given to `heard` in the running loop."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    rest = b""

    def collect() -> None:
        nonlocal rest
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reading, 65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if text := line.decode(errors="replace").strip():
                        heard(text)
                rest = rest[-4096:]

    loop = asyncio.get_running_loop()
    loop.add_reader(reading, collect)
    try:
        with open(writing, "wb", buffering=0) as file:
            yield file
    finally:
        loop.remove_reader(reading)
        collect()
        os.close(reading)
