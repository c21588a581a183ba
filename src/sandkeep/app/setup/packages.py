"""What a host needs from its distribution: Debian packages, and a runsc that we tested. No source is ever added."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sandkeep.domain.errors import Unavailable
from sandkeep.drivers.images.debian import host_sources
from sandkeep.drivers.runtime.runsc import build, control
from sandkeep.lib import process

Say = Callable[[str], None]

PACKAGES: dict[str, tuple[str, ...]] = {
    "btrfs-progs": ("mkfs.btrfs",),
    "libnftables1": (),
    "nftables": ("nft",),
    "mmdebstrap": ("mmdebstrap",),
    "runc": ("runc",),
    "util-linux": ("nsenter", "unshare", "losetup"),
    "ca-certificates": (),
}
"""Package -> the programs that show that it is there; without any, dpkg is asked."""

RUNTIMES = Path("/opt/sandkeep/runtimes")
_APT_TIMEOUT = 900.0


def missing_packages() -> list[str]:
    places = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = []
    for package, programs in PACKAGES.items():
        if programs:
            present = all(shutil.which(program, path=places) for program in programs)
        else:
            present = Path(f"/var/lib/dpkg/info/{package}.list").exists() or bool(
                list(Path("/var/lib/dpkg/info").glob(f"{package}:*.list"))
            )
        if not present:
            missing.append(package)
    return missing


async def install_packages(say: Say) -> None:
    """Raises Unavailable when the packages cannot be had."""
    missing = missing_packages()
    if not missing:
        return
    say(f"installing Debian packages: {' '.join(missing)}")
    if not shutil.which("apt-get"):
        raise Unavailable(f"these are missing: {', '.join(missing)}", hint="install them; setup knows only apt-get")
    environment = {**process.clean_environment(*process.NETWORK_VARIABLES), "DEBIAN_FRONTEND": "noninteractive"}
    # the packages' own scripts are no programs of ours: they keep the rights and the file mask that they expect
    try:
        await process.run(
            ["apt-get", "update", "-q"], timeout=_APT_TIMEOUT, env=environment, umask=0o022, may_gain=True
        )
        await process.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing],
            timeout=_APT_TIMEOUT,
            env=environment,
            umask=0o022,
            may_gain=True,
        )
    except (process.ProgramError, process.ProgramTimeoutError) as error:
        raise Unavailable(
            f"apt-get could not install {', '.join(missing)}: {error}", hint="install them by hand"
        ) from error


async def find_runsc(
    configured: Path | None, places: tuple[Path, ...], approved: frozenset[str]
) -> tuple[Path | None, bool]:
    """The first build that is on the tested list or that the deep check approved, and True; else the first that there is.
    approved: digests."""
    found = []
    for path in (*([configured] if configured else []), *places, *sorted(RUNTIMES.glob("runsc-*/runsc"))):
        if path.exists():
            try:
                version = await build.version(path)
            except Exception:  # noqa: S112 - a broken binary is no candidate
                continue
            if version in control.TESTED or build.digest(path) in approved:
                return path, True
            found.append(path)
    return (found[0] if found else None), False


async def used_runsc(configured: Path | None, places: tuple[Path, ...], approved: frozenset[str]) -> Path | None:
    """The configured one, which the runner uses whatever else there is; before setup, the one that it would choose."""
    if configured:
        return configured if configured.exists() else None
    return (await find_runsc(None, places, approved))[0]


async def fetch_runsc(say: Say) -> Path:
    """The one in Debian 13's archive, by an apt configuration of our own, which nothing else on the host sees."""
    say("fetching runsc from Debian 13's archive")
    releases = ("bookworm", "trixie")
    origin = next((source for source in host_sources(Path("/etc/apt")) if source.suite in releases), None)
    if origin is None:
        raise Unavailable("this host has no Debian archive in its apt sources", hint="install runsc 20240729 by hand")
    with tempfile.TemporaryDirectory(prefix="sandkeep-runsc-") as folder:
        home = Path(folder)
        (home / "lists" / "partial").mkdir(parents=True)
        (home / "trixie.list").write_text(replace(origin, suite="trixie").line() + "\n")
        options = [
            *("-o", f"Dir::Etc::sourcelist={home}/trixie.list"),
            *("-o", "Dir::Etc::sourceparts=-"),
            *("-o", f"Dir::State::lists={home}/lists"),
            *("-o", "APT::Sandbox::User=root"),
        ]
        environment = process.clean_environment(*process.NETWORK_VARIABLES)
        try:
            await process.run(["apt-get", *options, "update", "-q"], timeout=_APT_TIMEOUT, cwd=home, env=environment)
            await process.run(
                ["apt-get", *options, "download", "runsc"], timeout=_APT_TIMEOUT, cwd=home, env=environment
            )
            package = next(home.glob("runsc_*.deb"))
            await process.run(["dpkg", "-x", str(package), str(home / "x")], timeout=120)
        except (process.ProgramError, process.ProgramTimeoutError, StopIteration) as error:
            raise Unavailable(
                f"runsc could not be fetched: {error}", hint="put a runsc 20240729 at /usr/local/bin"
            ) from error
        binary = home / "x" / "usr" / "bin" / "runsc"
        version = await build.version(binary)
        target = RUNTIMES / f"runsc-{version}"
        target.mkdir(parents=True, exist_ok=True)
        fresh = target / ".runsc.new"
        shutil.copyfile(binary, fresh)
        fresh.chmod(0o755)
        fresh.rename(target / "runsc")
    return target / "runsc"
