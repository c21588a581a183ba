"""What an instance has on its host, counted from outside: for tests that nothing is left behind."""

import contextlib
import json
import os
import re
import socket
import subprocess
from pathlib import Path

from support.instance import Instance, until

_DAEMONS = {"runner": "run/runner.pid", "server": "run/server/server.pid", "keeper": "run/keeper.pid"}
_KEPT_CONNECTIONS = 6
"""Of clients, server and runner with each other, as many as were at work at once: fewer than one for each cycle."""
_DELETED = re.compile(r'"phase": ?"deleted"')
_OURS = re.compile(r"[a-z0-9]+v[0-9]+")
"""A sandbox's link, which the kernel reaps a moment after its namespace."""


def census(instance: Instance) -> dict[str, list[str]]:
    """Kind of thing -> names. Daemons run in the network namespace of the tests, so links and tables are theirs."""
    return {
        "processes": _processes(instance),
        "mounts": [line.split()[4] for line in _lines("/proc/self/mountinfo") if str(instance.root) in line],
        "namespaces": sorted(os.listdir(instance.root / "run/netns")),
        "links": sorted(name for _, name in socket.if_nameindex()),
        "loops": [
            file.parent.parent.name
            for file in Path("/sys/block").glob("loop*/loop/backing_file")
            if str(instance.root) in file.read_text()
        ],
        "groups": sorted(_groups(f"sandkeep-{instance.name}")),
        "firewall": _firewall(),
        "files": _files(instance),
        "descriptors": [f"{name} {count}" for name, count in _descriptors(instance).items()],
    }


def settled_census(instance: Instance, sandboxes: int = 0) -> dict[str, list[str]]:
    """Once what earlier tests deleted is gone in the background, too, tombstones with it, and so many sandboxes have a
    network."""
    seen = [census(instance)]

    def steady() -> bool:
        seen.append(census(instance))
        links = [name for name in seen[-1]["links"] if _OURS.fullmatch(name)]
        return seen[-1] == seen[-2] and len(links) == sandboxes and not _tombstones(instance)

    until(steady, 30, wait=0.5)
    return seen[-1]


def _groups(ours: str) -> set[str]:
    """Names of control groups. Those of others come and go while we look; os.walk passes over what is gone."""
    found = set()
    for folder, below, _ in os.walk("/sys/fs/cgroup"):
        if ours in folder:
            found |= {Path(folder).name, *below}
    return found


def _tombstones(instance: Instance) -> list[str]:
    """Records of what is erased, which wait for a sync of the pool."""
    found = []
    for file in (instance.root / "data/node/sandboxes").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            if _DELETED.search(file.read_text(errors="replace")):
                found.append(file.name)
    return found


def same_again(instance: Instance, before: dict[str, list[str]], timeout: float = 30.0) -> None:
    """Descriptors may be fewer; everything else is as it was, once deletions in the background have ended."""
    left: list[str] = []

    def settled() -> bool:
        left[:] = left_over(instance, before)
        return not left

    try:
        until(settled, timeout, wait=0.1)
    except AssertionError:
        raise AssertionError("left behind: " + "; ".join(left)) from None


def left_over(instance: Instance, before: dict[str, list[str]]) -> list[str]:
    """What there is more, and what is missing."""
    now, found = census(instance), []
    for kind, names in before.items():
        if kind == "descriptors":
            were = dict(name.split() for name in names)
            for name, count in (text.split() for text in now[kind]):
                if int(count) > int(were.get(name, 0)) + _KEPT_CONNECTIONS:
                    found.append(f"descriptors: {name} {count} (was {were.get(name, 0)})")
        else:
            found += [f"{kind}: more {name}" for name in _without(now[kind], names)]
            found += [f"{kind}: less {name}" for name in _without(names, now[kind])]
    return found


def _without(names: list[str], others: list[str]) -> list[str]:
    rest = list(names)
    for name in others:
        if name in rest:
            rest.remove(name)
    return rest


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _processes(instance: Instance) -> list[str]:
    """Those that name the instance's folders, or are in its control groups."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = (folder / "cgroup").read_text()
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(parent) == os.getpid():
            continue  # dead, and ours to reap: some test made this process the parent of orphans
        if (
            str(instance.root) in command or f"sandkeep-{instance.name}/" in groups
        ) and "sandkeep.cli.main" not in command:
            found.append(command[:200])
    return sorted(found)


def _firewall() -> list[str]:
    done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    found = []
    for item in json.loads(done.stdout)["nftables"]:
        ((kind, body),) = item.items()
        if kind == "metainfo":
            continue
        text = json.dumps({key: value for key, value in body.items() if key != "handle"}, sort_keys=True)
        found.append(f"{kind} {text}" if "counter" not in text else f"{kind} {body.get('table')} {body.get('chain')}")
    return sorted(found)


_KEPT = {"data/node/keys", "data/archive", "data/archive/sandboxes"}


def _files(instance: Instance) -> list[str]:
    """All below run and data but what is inside disks, the database's own scratch files, and what stays once anything was
    archived: the keys, and the store's folders."""
    found = []
    for top in ("run", "data"):
        for folder, folders, files in os.walk(instance.root / top):
            here = Path(folder).relative_to(instance.root)
            if here.parts[:3] == ("data", "pool", "templates"):
                folders.clear()
                continue
            if here.parts == ("data", "node", "keys"):
                continue
            found += [str(here / name) for name in files if not name.startswith("sandkeep.db-")]
            found += [f"{here / name}/" for name in folders if str(here / name) not in _KEPT]
    return sorted(found)


def quota_groups(instance: Instance) -> list[str]:
    """One for each sandbox; those of deleted ones are swept every so many deletions, and when the runner starts."""
    pool = str(instance.root / "data/pool")
    subprocess.run(["btrfs", "filesystem", "sync", pool], check=True, capture_output=True)
    subprocess.run(["btrfs", "subvolume", "sync", pool], check=True, capture_output=True, timeout=60)
    done = subprocess.run(["btrfs", "qgroup", "show", pool], check=True, capture_output=True, text=True)
    return sorted(line.split()[0] for line in done.stdout.splitlines() if line.startswith("1/"))


def disk_limits(instance: Instance) -> list[int]:
    """Bytes that each sandbox may have on disk, as the pool says."""
    command = ["btrfs", "qgroup", "show", "-r", "--raw", str(instance.root / "data/pool")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("1/")]
    return sorted(int(word) for line in lines for word in line[3:4] if word.isdigit())


def _descriptors(instance: Instance) -> dict[str, int]:
    """Of those that run: where somebody else starts the daemons, there is no keeper."""
    found = {}
    for name, file in _DAEMONS.items():
        with contextlib.suppress(OSError, ValueError):
            pid = int((instance.root / file).read_text())
            found[name] = len(os.listdir(f"/proc/{pid}/fd"))
    return found
