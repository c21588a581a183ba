"""`sandkeep backup create` and `restore`: the control plane's state as one file.

Lines of JSON: a header, the rows (store/backup), and last a checksum of all before it. It holds the digests of API keys and
the environments of sandboxes, so it is for root alone. Nothing of the node is in it, and a restore changes nothing there.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import anyio

from sandkeep import __version__
from sandkeep.app import wiring
from sandkeep.app.daemon import holder, only_one
from sandkeep.app.server import acting_as, database_of
from sandkeep.app.settings import Settings
from sandkeep.app.standalone import prepare_folders, require_root, stop_daemons, up
from sandkeep.domain.errors import Conflict, InvalidArgument, NotFound
from sandkeep.domain.sandbox import Phase
from sandkeep.engine.records import Records
from sandkeep.lib.files import written_durably
from sandkeep.store import backup as store
from sandkeep.store import migrations

Say = Callable[[str], None]
_FORMAT, _VERSION = "sandkeep-backup", 1


async def create(settings: Settings, file: Path) -> dict[str, Any]:
    """One moment of the database, beside the running server or without it. Raises NotFound without a database."""
    require_root()
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "sandkeep": __version__,
        "instance": settings.instance,
        "node": wiring.node_id(settings),
        "taken_at": time.time(),
    }
    if not settings.database_url and not settings.database.exists():
        raise NotFound(f"there is no database {settings.database}", hint="sandkeep up makes it")
    if not file.parent.is_dir():
        raise InvalidArgument(f"{file.parent} is no folder", hint="make it first", field="file")
    rows: dict[str, int] = {}
    with acting_as(settings.user):
        database = database_of(settings, read_only=True)
    try:
        with acting_as(settings.user):
            if await database.look() is None:
                raise NotFound("the database is empty", hint="sandkeep up fills it")
        with written_durably(file) as target:
            digest, table = hashlib.sha256(), ""
            async with database.transaction() as transaction:
                async for value in store.dump(transaction, about):
                    line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
                    digest.update(line)
                    target.write(line)
                    if isinstance(value, list):
                        rows[table] += 1
                    elif "table" in value:
                        table = value["table"]
                        rows[table] = 0
            target.write(json.dumps({"rows": sum(rows.values()), "sha256": digest.hexdigest()}).encode() + b"\n")
    finally:
        await database.close()
    return {"file": str(file), "size": file.stat().st_size, "rows": rows}


async def restore(settings: Settings, file: Path, say: Say, *, restart: bool) -> dict[str, Any]:
    """Put a backup in the place of the database. `restart`: stop the daemons for it if they run, and start them again.
    Raises NotFound, Conflict for a damaged or newer file or a running server, PermissionDenied."""
    require_root()
    try:
        source = file.open("rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFound(f"there is no backup {file}", hint="sandkeep backup create FILE makes one") from error
    with source:
        header = verify(source)
        running = holder(settings.run_folder / "server", "server") is not None
        if running and not restart:
            raise Conflict(
                "the server of this instance is running", hint="sandkeep down first; or --yes stops and starts it"
            )
        if header["node"] != wiring.node_id(settings):
            say(f"the backup is of instance {header['instance']} on another node ({header['node']})")
        prepare_folders(settings)
        if running:
            say("stopping the daemons (sandboxes go on)")
            await stop_daemons(settings)
        rows, kept, ids = await _replace(settings, source, header)
    found = _matches(settings, ids)
    say(
        f"restored {sum(rows.values())} rows of {_when(header['taken_at'])}"
        + (f"; the database that was there is {kept}" if kept else "")
    )
    say(
        f"sandboxes: {found['both']} in the backup and on the node; {found['only_backup']} only in the backup, which will be "
        f"failed or gone; {found['only_node']} only on the node, which stay as they are"
    )
    if running:
        await up(settings, say)
    return {"taken_at": header["taken_at"], "schema": header["schema"], "rows": rows, "kept": kept, "sandboxes": found}


def verify(source: IO[bytes]) -> dict[str, Any]:
    """The header of a whole backup. Raises Conflict for anything else, and for one of a newer version."""
    digest, last = hashlib.sha256(), b""
    header: Any = None
    for line in source:
        digest.update(last)
        if header is None:
            header = _parsed(line)
            if not isinstance(header, dict) or header.get("format") != _FORMAT:
                raise Conflict("this is not a backup of Sandkeep's", hint="sandkeep backup create FILE makes one")
            version = header.get("version")
            if isinstance(version, int) and version > _VERSION:
                raise Conflict("the backup was made by a newer version", hint="restore it with that version")
        last = line
    end = _parsed(last)
    if not isinstance(end, dict) or end.get("sha256") != digest.hexdigest():
        raise Conflict("the backup is damaged or not whole", hint="nothing was changed; take another backup")
    migrations.check(header["schema"], "the backup")
    return dict(header)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _content(source: IO[bytes], ids: set[str]) -> Iterator[Any]:
    """The lines between the header and the checksum; notes the ids of sandboxes on the way."""
    source.seek(0)
    source.readline()
    place = None
    for line in source:
        value = json.loads(line)
        if isinstance(value, dict):
            if "table" not in value:
                return
            place = value["columns"].index("id") if value["table"] == "sandboxes" else None
        elif place is not None:
            ids.add(value[place])
        yield value


async def _replace(
    settings: Settings, source: IO[bytes], header: dict[str, Any]
) -> tuple[dict[str, int], str, set[str]]:
    """As the server's user, who shall own what is made, and holding its lock, so that none starts meanwhile."""
    ids: set[str] = set()

    async def fill(transaction: Any, above: int) -> dict[str, int]:
        later = max(0.0, time.time() - header["taken_at"])
        return await store.load(transaction, header, _content(source, ids), later=later, above=above)

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    with acting_as(settings.user), only_one(settings.run_folder / "server", "server"):
        database = database_of(settings)
        file = None if settings.database_url else settings.database
        try:
            rows, kept = await store.replace(database, file, stamp, fill)
        finally:
            with anyio.CancelScope(shield=True):
                await database.close()
    return rows, kept, ids


def _matches(settings: Settings, ids: set[str]) -> dict[str, int]:
    """How the backup's sandboxes match those of the node; what was deleted there counts as not there."""
    records = Records(settings.node_folder)
    records.load()
    on_node = {record.id for record in records.sandboxes.values() if record.phase is not Phase.DELETED}
    return {"both": len(ids & on_node), "only_backup": len(ids - on_node), "only_node": len(on_node - ids)}


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
