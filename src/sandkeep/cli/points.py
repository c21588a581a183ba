"""NAME@SNAPSHOT on the command line: a point in time of a sandbox, parsed and completed; NAME@SNAPSHOT:/path: a file there."""

from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.options import KnownName

if TYPE_CHECKING:
    from sandkeep.sdk import Client, Sandbox, Snapshots

_MOST = 1000
"""Names in a folder that are offered."""


class Point(str):
    """As it was written."""

    @property
    def sandbox(self) -> str:
        return self.partition("@")[0]

    @property
    def snapshot(self) -> str:
        """Empty: the sandbox as it is now."""
        return self.partition("@")[2]


class PointName(KnownName):
    """`or_now`: NAME alone is a point too."""

    name = "point"

    def __init__(self, *, or_now: bool = False) -> None:
        self.or_now = or_now

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Point:
        point = Point(value)
        now = self.or_now and "@" not in point
        if not point.sandbox or not (point.snapshot or now):
            shape = "NAME or NAME@SNAPSHOT" if self.or_now else "NAME@SNAPSHOT"
            known = f"`sandkeep snapshot list {point.sandbox or 'NAME'}` shows the snapshots"
            self.fail(f"{value!r} is not {shape}: {known}", param, ctx)
        return point

    def known(self, client: "Client", incomplete: str) -> list[str]:
        from sandkeep.sdk import Sandbox

        name, at, _ = incomplete.partition("@")
        if at:
            return self._snapshots(Sandbox.get(name, client=client), name)
        found = {sandbox.name or sandbox.id: sandbox for sandbox in Sandbox.list(client=client)}
        if self.or_now:
            return list(found)
        fitting = [known for known in found if known.startswith(incomplete)]
        if len(fitting) == 1:
            # Shells put a space after the only answer, and the point would be cut off there.
            return self._snapshots(found[fitting[0]], fitting[0])
        return [f"{known}@" for known in fitting]

    @staticmethod
    def _snapshots(sandbox: "Sandbox", name: str) -> list[str]:
        return [f"{name}@{view.name or view.id}" for view in sandbox.snapshots.list()]


POINT = PointName()


class Place(Point):
    """A point, and a path on its disk."""

    @property
    def point(self) -> Point:
        return Point(self.partition(":")[0])

    @property
    def sandbox(self) -> str:
        return self.point.sandbox

    @property
    def snapshot(self) -> str:
        return self.point.snapshot

    @property
    def path(self) -> str:
        """Empty: none was written."""
        return self.partition(":")[2]


class PlaceName(PointName):
    """`path`: it must have one."""

    name = "place"

    def __init__(self, *, or_now: bool = False, path: bool = True) -> None:
        super().__init__(or_now=or_now)
        self._path = path

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        place = Place(value)
        super().convert(place.point, param, ctx)
        if not place.path.startswith("/") and (place.path or self._path):
            shape = f"{place.point}:/PATH"
            self.fail(f"{value!r} has no path that begins with a slash: write {shape}", param, ctx)
        return place

    def known(self, client: "Client", incomplete: str) -> list[str]:
        written, colon, path = incomplete.partition(":")
        if not colon:
            points = [point for point in POINT.known(client, incomplete) if point.startswith(incomplete)]
            if len(points) != 1 or points[0].endswith("@"):
                return points
            written, path = points[0], "/"
        from sandkeep.sdk import Sandbox

        point = Point(written)
        disk = Sandbox.get(point.sandbox, client=client).snapshots
        found = self._paths(disk, point.snapshot or None, path)
        if len(found) == 1 and found[0].endswith("/"):
            # As of points: no space must come after a folder.
            found = self._paths(disk, point.snapshot or None, found[0]) or found
        return [f"{written}:{one}" for one in found]

    @staticmethod
    def _paths(disk: "Snapshots", snapshot: str | None, begun: str) -> list[str]:
        folder = begun.rpartition("/")[0] + "/"
        found = [
            folder + one.name + ("/" if one.type == "directory" else "")
            for one in islice(disk.iter_ls(snapshot, folder), _MOST)
            if one.name.isprintable()
        ]
        return [path for path in found if path.startswith(begun)]
