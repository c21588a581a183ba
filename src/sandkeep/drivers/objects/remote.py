"""`Objects` in S3, Google Cloud Storage or Azure, by URL, through obstore; loaded when it is first used."""

from datetime import timedelta
from typing import Any

from sandkeep.domain.errors import InvalidArgument, NotFound, PermissionDenied, SandkeepError, TooLarge, Unavailable
from sandkeep.drivers.objects.keys import checked, is_key

SCHEMES = ("s3", "gs", "az")
_CALL = timedelta(seconds=60)
_CONNECT = timedelta(seconds=5)
_RETRIES: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}


class RemoteObjects:
    """options: as obstore names them (endpoint, region, access_key_id, secret_access_key, ...)."""

    def __init__(self, url: str, options: dict[str, str]) -> None:
        self.where = url
        self._options = options
        self._store: Any = None

    def _opened(self) -> Any:
        """Raises InvalidArgument: the settings do not make a store."""
        if self._store is None:
            from obstore.store import from_url

            options: Any = self._options  # which of them there are depends on the store: it says what is wrong
            client: Any = {"timeout": _CALL, "connect_timeout": _CONNECT}
            if self._options.get("endpoint", "").startswith("http://"):
                client["allow_http"] = True
            try:
                self._store = from_url(self.where, config=options, client_options=client, retry_config=_RETRIES)
            except Exception as error:
                raise InvalidArgument(
                    f"archive_url {self.where} cannot be used: {_words(error)}",
                    hint="see the settings archive_url and archive_options",
                ) from error
        return self._store

    async def put(self, key: str, data: bytes) -> None:
        store = self._opened()
        try:
            await store.put_async(checked(key), data, use_multipart=False)
        except Exception as error:
            raise self._failed(error, key) from error

    async def get(self, key: str, limit: int) -> bytes:
        store = self._opened()
        try:
            found = await store.get_async(checked(key))
            if found.meta["size"] > limit:
                raise TooLarge(f"the object {key} has more than {limit} bytes")
            pieces, size = [], 0
            async for piece in found.stream():
                size += len(piece)
                if size > limit:
                    raise TooLarge(f"the object {key} has more than {limit} bytes")
                pieces.append(bytes(piece))
            return b"".join(pieces)
        except Exception as error:
            raise self._failed(error, key) from error

    async def sizes(self, folder: str) -> dict[str, int]:
        store, found = self._opened(), {}
        try:
            async for page in store.list(checked(folder) + "/"):
                found.update({item["path"]: item["size"] for item in page if is_key(item["path"])})
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._failed(error, folder) from error
        return found

    async def delete(self, keys: list[str]) -> None:
        store = self._opened()
        for key in keys:
            try:
                await store.delete_async(checked(key))
            except FileNotFoundError:
                pass
            except Exception as error:
                raise self._failed(error, key) from error

    async def close(self) -> None:
        """Its connections go with it."""
        self._store = None

    def _failed(self, error: Exception, key: str) -> SandkeepError:
        if isinstance(error, SandkeepError):
            return error
        from obstore import exceptions

        if isinstance(error, (FileNotFoundError, exceptions.NotFoundError)):
            return NotFound(f"there is no object {key} in {self.where}")
        if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
            return PermissionDenied(
                f"the object store {self.where} refuses us: {_words(error)}",
                hint="see the setting archive_options: the key in it must be able to read, write, list and delete",
            )
        return Unavailable(
            f"the object store {self.where} failed: {_words(error)}",
            hint="nothing was lost: it can be tried again when the store answers",
            retry_after=10,
            part="store",
        )


def _words(error: Exception) -> str:
    """One line: what stores say is long, and may repeat the request."""
    return " ".join(str(error).split())[:300]
