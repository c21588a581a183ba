"""HTTP to one server: the key, one connection pool, errors as classes, safe retries, the version check."""

import json
import time
import warnings
from collections.abc import AsyncIterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sandkeep.lib.retry import delays
from sandkeep.sdk import errors
from sandkeep.sdk.concurrency import async_sleep
from sandkeep.sdk.config import Address
from sandkeep.sdk.requests import encoded
from sandkeep.sdk.versions import check_version, client_version

if TYPE_CHECKING:
    import httpx2

Query = Mapping[str, Any]
_JSON = {"Content-Type": "application/json"}
NO_LIMIT = float("inf")


class AsyncTransport:
    """`timeout`: seconds without an answer after which a call fails; `retry_for`: seconds that retries may take.

    May be used by several tasks at once. Raises the classes of sdk/errors and nothing of the HTTP library.
    """

    def __init__(self, address: Address, *, timeout: float, retry_for: float, verify: str | bool) -> None:
        # Imported here, so that `import sandkeep` costs no HTTP library.
        self._httpx: Any = import_module("httpx2")
        httpx = self._httpx
        self.address = address
        self.timeout = timeout
        self._retry_for = retry_for
        self._checked = False
        self._http: httpx2.AsyncClient = httpx.AsyncClient(
            headers={
                "Authorization": f"Bearer {address.key}",
                "User-Agent": f"sandkeep/{client_version()}",
                # The agent would compress files on one core; between here and there that only costs.
                "Accept-Encoding": "identity",
            },
            timeout=httpx.Timeout(timeout, connect=5.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=60.0),
            verify=verify if address.url.startswith("https:") else False,
            trust_env=not address.loopback,
            follow_redirects=False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        again: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """One request with a JSON (or bytes) body; the decoded JSON answer, or None when it is empty.

        `again`: the request may be sent again although the first may have been carried out.
        """
        extra = dict(headers) if headers else {}
        content: bytes | None = None
        if body is not None:
            extra |= _JSON
            content = body if isinstance(body, bytes) else encoded(body)
        response = await self.open(
            method, path, query=query, content=content, headers=extra, again=again, timeout=timeout, stream=False
        )
        return self._decoded(response)

    async def call_with(self, method: str, path: str, *, query: Query, content: AsyncIterable[bytes]) -> Any:
        """One request with a streamed body; the decoded JSON answer. Never sent twice."""
        response = await self.open(method, path, query=query, content=content, stream=False)
        return self._decoded(response)

    def _decoded(self, response: "httpx2.Response") -> Any:
        if not response.content:
            return None
        try:
            return json.loads(response.content)
        except ValueError as error:
            raise errors.Internal(
                f"{self.address.url} answered something else than JSON", hint="is that a Sandkeep server?"
            ) from error

    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = False,
        timeout: float | None = None,
        stream: bool = True,
    ) -> "httpx2.Response":
        """One request; its answer below 400, whose body the caller reads and closes when `stream`."""
        if not self._checked:
            await self._check_version()
        httpx = self._httpx
        replayable = content is None or isinstance(content, bytes)
        options: dict[str, Any] = {"headers": headers, "content": content}
        if query:
            options["params"] = query
        if timeout is not None:
            read = None if timeout == NO_LIMIT else timeout
            options["timeout"] = httpx.Timeout(read, connect=5.0, pool=None, write=self.timeout)
        waits = delays(first=0.05, cap=2.0)
        deadline = time.monotonic() + self._retry_for
        repeated = False
        while True:
            wait = next(waits)
            error: errors.SandkeepError
            try:
                request = self._http.build_request(method, self.address.url + path, **options)
                response = await self._http.send(request, stream=stream)
                if response.status_code < 400:
                    return response
                if stream:
                    await self._drain(response)
                error = errors.from_answer(response.status_code, response.headers, response.content)
                if repeated and method == "DELETE" and response.status_code == 404:
                    return response  # the first try had done it
                retry = replayable and self._worth_again(error, again, repeated)
                wait = error.retry_after or wait
            except (httpx.ConnectError, httpx.ConnectTimeout) as failure:
                # Nothing was sent, not even the first block of a stream.
                error, retry = unreachable(self.address.url, failure), True
            except httpx.TimeoutException as failure:
                limit = self.timeout if timeout is None else timeout
                error = errors.DeadlineExceeded(
                    f"no answer from {self.address.url} within {limit:g} s",
                    hint="it may still be carried out; look at the sandbox, or give a longer timeout",
                )
                error.__cause__ = failure
                retry = False
            except httpx.TransportError as failure:
                error, retry = lost(self.address.url, failure), again and replayable
            except httpx.InvalidURL as failure:
                raise errors.InvalidArgument(f"not a valid address: {failure}") from failure
            if not retry or time.monotonic() + wait > deadline:
                raise error
            repeated = repeated or not isinstance(error, errors.ConnectionFailed)
            await async_sleep(wait)

    @staticmethod
    def _worth_again(error: errors.SandkeepError, again: bool, repeated: bool) -> bool:
        if error.status == 429:
            # Without Retry-After it is a quota, not a rate; and only the server's 429, never the agent's.
            return error.retry_after is not None and isinstance(error, errors.QuotaExceeded)
        if error.status == 503:
            return again
        # What we sent before the connection broke may still be under way.
        return again and repeated and isinstance(error, errors.Busy)

    async def _drain(self, response: "httpx2.Response") -> None:
        try:
            await response.aread()
        finally:
            await response.aclose()

    async def _check_version(self) -> None:
        """Once per client. What the server says about itself; when it does not answer, the real request tells why."""
        self._checked = True
        try:
            told = await self.call("GET", "/v1/version", again=True, timeout=10.0)
        except errors.NotFound as error:
            self._checked = False
            raise errors.VersionMismatch(
                f"{self.address.url} is not a Sandkeep server", hint="check the address (SANDKEEP_URL)"
            ) from error
        except errors.ConnectionFailed:
            self._checked = False
            raise
        except errors.SandkeepError:
            self._checked = False
            return
        try:
            warning = check_version(told)
        except errors.VersionMismatch:
            self._checked = False
            raise
        if warning:
            warnings.warn(warning, stacklevel=4)


def unreachable(url: str, failure: Exception | None = None) -> errors.ConnectionFailed:
    error = errors.ConnectionFailed(
        f"cannot reach {url}" + (f": {failure}" if failure and str(failure) else ""),
        hint="is the server up? `sandkeep up` starts one; SANDKEEP_URL and the configuration file say where it is",
    )
    error.__cause__ = failure
    return error


def lost(url: str, failure: Exception) -> errors.ConnectionLost:
    error = errors.ConnectionLost(
        f"the connection to {url} broke: {failure}", hint="the request may have been carried out; look before repeating"
    )
    error.__cause__ = failure
    return error
