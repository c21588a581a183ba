"""Which packages differ between two folders that a guest has shaped, from the paths that differ. Used by engine/browse.

What describes a package is a stranger's: sizes are bounded, and what does not parse is no package.
"""

import json
import os
import re
import stat
from pathlib import Path

from sandkeep.domain.browse import ChangeKind, PackageChange, raw
from sandkeep.lib import beneath

_DPKG = b"var/lib/dpkg/status"
_DPKG_LIMIT = 64 << 20
_NPM_LIMIT = 1 << 20
_MOST = 100_000
"""Places of packages that are remembered."""
_LONGEST = 256
_PIP = re.compile(rb"(?P<place>(?:.*/)?)(?P<dist>[^/]+)\.dist-info(?:/|$)", re.DOTALL)
_NPM = re.compile(rb"(?P<place>(?:.*/)?node_modules)/(?P<name>(?:@[^/]+/)?[^/.@][^/]*)(?:/package\.json)?", re.DOTALL)

_Places = dict[tuple[str, str, bytes], set[bytes]]
"""(manager, name, place) -> the paths that describe it: of pip one for each version."""


class Packages:
    """Told each path that differs; then `changes`."""

    def __init__(self) -> None:
        self._dpkg = False
        self._places: _Places = {}

    def seen(self, path: bytes) -> None:
        if path == _DPKG:
            self._dpkg = True
        elif b".dist-info" in path and (found := _PIP.match(path)):
            dist = found["dist"].partition(b"-")
            name = re.sub(rb"[-_.]+", b"-", dist[0]).lower()
            self._add("pip", name, found["place"].rstrip(b"/"), found["place"] + found["dist"])
        elif b"node_modules/" in path and (found := _NPM.fullmatch(path)):
            self._add("npm", found["name"], found["place"], found["place"] + b"/" + found["name"])

    def _add(self, manager: str, name: bytes, place: bytes, described: bytes) -> None:
        key = manager, _text(name), place
        if key in self._places or len(self._places) < _MOST:
            self._places.setdefault(key, set()).add(described)

    def changes(self, before: Path, after: Path) -> tuple[PackageChange, ...]:
        """Blocks. Raises OSError when a root is gone."""
        with beneath.root(before) as old, beneath.root(after) as new:
            found = _dpkg_changes(old, new) if self._dpkg else []
            for (manager, name, place), described in self._places.items():
                version = _pip_version if manager == "pip" else _npm_version
                found += _change(manager, name, raw(place), version(old, described), version(new, described))
        return tuple(sorted(found, key=lambda one: (one.manager, one.name, one.place)))


def _change(manager: str, name: str, place: str, before: str | None, after: str | None) -> list[PackageChange]:
    if before == after:
        return []
    kind = ChangeKind.ADDED if before is None else ChangeKind.REMOVED if after is None else ChangeKind.CHANGED
    return [PackageChange(manager, name, place, kind, before, after)]


def _dpkg_changes(before: int, after: int) -> list[PackageChange]:
    old, new = _installed(before), _installed(after)
    found = []
    for name in old.keys() | new.keys():
        found += _change("dpkg", name, "", old.get(name), new.get(name))
    return found


def _installed(root: int) -> dict[str, str]:
    """Name (of a second architecture, name:arch) -> version, from dpkg's status file."""
    return dpkg_status(_read(root, _DPKG, _DPKG_LIMIT) or b"")


def dpkg_status(text: bytes) -> dict[str, str]:
    """deb822, as dpkg writes it: one paragraph a package. What is not installed is left out."""
    found: dict[str, str] = {}
    fields: dict[bytes, bytes] = {}
    for line in [*text.split(b"\n"), b""]:
        if line.strip():
            name, colon, value = line.partition(b":")
            if colon and name in (b"Package", b"Status", b"Version", b"Architecture") and len(value) <= _LONGEST:
                fields[name] = value.strip()
            continue
        if fields.get(b"Status", b"").endswith(b" installed") and b"Package" in fields and b"Version" in fields:
            package = _text(fields[b"Package"])
            if package in found:
                package = f"{package}:{_text(fields.get(b'Architecture', b''))}"
            found[package] = _text(fields[b"Version"])
        fields = {}
    return found


def _pip_version(root: int, described: set[bytes]) -> str | None:
    """By the name of its folder, which says both."""
    versions = []
    for path in described:
        if _is_folder(root, path + b".dist-info"):
            versions.append(_text(path.rpartition(b"/")[2].partition(b"-")[2]))
    return ", ".join(sorted(versions)) or None


def _npm_version(root: int, described: set[bytes]) -> str | None:
    for path in described:
        text = _read(root, path + b"/package.json", _NPM_LIMIT)
        if text is None:
            return None
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return None
        version = told.get("version") if isinstance(told, dict) else None
        return _text(version.encode("utf-8", "replace")) if isinstance(version, str) else None
    return None


def _is_folder(root: int, path: bytes) -> bool:
    try:
        fd = beneath.exact(root, path)
    except OSError:
        return False
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _read(root: int, path: bytes, limit: int) -> bytes | None:
    """None when it is no regular file, or a larger one."""
    try:
        handle = beneath.exact(root, path)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        with open(beneath.opened(handle), "rb") as file:
            text = file.read(limit + 1)
    except OSError:
        return None
    finally:
        os.close(handle)
    return text if len(text) <= limit else None


def _text(value: bytes) -> str:
    return value[:_LONGEST].decode("utf-8", "replace")
