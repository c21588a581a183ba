"""`Objects` in a folder of the host: what archives go to when no store is set. Root's alone."""

import errno
import os
from pathlib import Path

from anyio.to_thread import run_sync

from sandkeep.domain.errors import NoCapacity, NotFound, SandkeepError, StorageFailed, TooLarge
from sandkeep.drivers.objects.keys import checked, is_key
from sandkeep.lib.files import open_plain, sync_folder, write_durably


class FolderObjects:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder)

    async def put(self, key: str, data: bytes) -> None:
        await run_sync(self._put, checked(key), data)

    async def get(self, key: str, limit: int) -> bytes:
        return await run_sync(self._get, checked(key), limit)

    async def sizes(self, folder: str) -> dict[str, int]:
        return await run_sync(self._sizes, checked(folder))

    async def delete(self, keys: list[str]) -> None:
        await run_sync(self._delete, [checked(key) for key in keys])

    async def close(self) -> None:
        """Nothing is held."""

    def _put(self, key: str, data: bytes) -> None:
        path = self._folder / key
        try:
            self._make(path.parent)
            write_durably(path, data)
        except OSError as error:
            raise self._failed(error) from error

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self._folder:
            self._make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)

    def _get(self, key: str, limit: int) -> bytes:
        try:
            with open(open_plain(self._folder / key), "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > limit:
                    raise TooLarge(f"the object {key} has more than {limit} bytes")
                return file.read(limit + 1)
        except FileNotFoundError as error:
            raise NotFound(f"there is no object {key} in {self.where}") from error
        except OSError as error:
            raise self._failed(error) from error

    def _sizes(self, folder: str) -> dict[str, int]:
        found = {}
        for at, _, names in os.walk(self._folder / folder):
            for name in names:
                key = str(Path(at, name).relative_to(self._folder))
                if is_key(key):  # not half of a write
                    found[key] = Path(at, name).lstat().st_size
        return found

    def _delete(self, keys: list[str]) -> None:
        folders = set()
        for key in keys:
            path = self._folder / key
            path.unlink(missing_ok=True)
            path.with_name(f".{path.name}.new").unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            self._tidy(folder)

    def _tidy(self, folder: Path) -> None:
        """Folders that hold nothing any more, but those at the top: others may be about to use them."""
        while self._folder not in (folder, folder.parent):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                sync_folder(folder)
                return
            folder = folder.parent
        if folder.is_dir():
            sync_folder(folder)

    def _failed(self, error: OSError) -> SandkeepError:
        said = f"the archive folder {self.where} failed: {error.strerror or error}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return NoCapacity(said, hint="free some room there, or set archive_url to another place", retry_after=30)
        return StorageFailed(said, hint="is its disk there and writable?", retry_after=30)
