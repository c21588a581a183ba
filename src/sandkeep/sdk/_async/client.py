"""The client: one server, its templates, keys, events and figures. Sandboxes are reached through AsyncSandbox."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sandkeep.sdk._async.lists import feed, lines, pages
from sandkeep.sdk._async.node import AsyncAdoption, AsyncQuarantine
from sandkeep.sdk._async.transport import AsyncTransport
from sandkeep.sdk.concurrency import async_scope, async_sleep
from sandkeep.sdk.config import resolve
from sandkeep.sdk.requests import given, quoted, shaped

if TYPE_CHECKING:
    from sandkeep.wire.browse import DiffView
    from sandkeep.wire.events import EventView
    from sandkeep.wire.keys import KeyCreated, KeyView
    from sandkeep.wire.platform import NodeView, RuntimeView, VersionView
    from sandkeep.wire.templates import TemplateView

_DIFF_PATIENCE = 360.0


class AsyncClient:
    """A connection to one Sandkeep server.

    `url` and `key` come from the arguments, else SANDKEEP_URL and SANDKEEP_KEY, else the configuration file (`instance`
    names an entry of it). `timeout`: seconds without an answer; `retry_for`: seconds that safe retries may take;
    `verify`: False, or a file of certificates, for https. May be shared by tasks. Raises ConfigError.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        instance: str | None = None,
        timeout: float = 300.0,
        retry_for: float = 10.0,
        verify: str | bool = True,
    ) -> None:
        self.transport = AsyncTransport(
            resolve(url, key, instance), timeout=timeout, retry_for=retry_for, verify=verify
        )
        self.templates = AsyncTemplates(self.transport)
        self.keys = AsyncKeys(self.transport)
        self.adoption = AsyncAdoption(self.transport)
        self.quarantine = AsyncQuarantine(self.transport)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    @property
    def url(self) -> str:
        return self.transport.address.url

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.transport.aclose()

    async def version(self) -> "VersionView":
        view: VersionView = shaped("platform.VersionView", await self.transport.call("GET", "/v1/version", again=True))
        return view

    async def node(self) -> "NodeView":
        view: NodeView = shaped("platform.NodeView", await self.transport.call("GET", "/v1/node", again=True))
        return view

    async def runtimes(self) -> "Sequence[RuntimeView]":
        """Which runtimes this server has, and what each can do."""
        return [shaped("platform.RuntimeView", item) async for item in pages(self.transport, "/v1/runtimes")]

    async def events(self, *, after: int | None = None, follow: bool = False) -> "AsyncIterator[EventView]":
        """What happened, oldest first, from after the given seq. `follow`: goes on with what happens from now on."""
        async for item in feed(self.transport, "/v1/events", after, follow):
            yield shaped("events.EventView", item)

    async def diff(self, before: str, after: str, *, limit: int = 10_000) -> "DiffView":
        """What differs between two points in time, each NAME@SNAPSHOT, the id of a snapshot, or NAME: as it is now. See
        AsyncSandbox.diff."""
        query = {"before": before, "after": after, "limit": limit}
        answer = await self.transport.call("GET", "/v1/diff", query=query, again=True, timeout=_DIFF_PATIENCE)
        view: DiffView = shaped("browse.DiffView", answer)
        return view


class AsyncTemplates:
    """Templates: what sandboxes start from."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def build(
        self,
        name: str,
        steps: Sequence[str],
        *,
        parent: str | None = None,
        runtime: str | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
        step_timeout: float | None = None,
    ) -> "TemplateView":
        """Start a build; it goes on by itself. `log(follow=True)` shows it, `wait` waits for its end."""
        body = given(
            name=name,
            steps=list(steps),
            parent=parent,
            runtime=runtime,
            memory=memory,
            disk=disk,
            step_timeout=step_timeout,
        )
        return self._view(await self._transport.call("POST", "/v1/templates", body=body))

    async def list(self) -> "AsyncIterator[TemplateView]":
        async for item in pages(self._transport, "/v1/templates"):
            yield self._view(item)

    async def get(self, ref: str) -> "TemplateView":
        return self._view(await self._transport.call("GET", f"/v1/templates/{quoted(ref)}", again=True))

    async def wait(self, ref: str) -> "TemplateView":
        """The template, once its build has ended; `phase` says how."""
        while (view := await self.get(ref)).phase == "building":
            await async_sleep(0.5)
        return view

    async def log(self, ref: str, *, follow: bool = False) -> AsyncIterator[str]:
        """The lines that the build printed; with `follow` until it ends."""
        query = {"follow": "true"} if follow else {}
        async for line in lines(self._transport, f"/v1/templates/{quoted(ref)}/log", query):
            yield line.decode("utf-8", "replace")

    async def delete(self, ref: str) -> None:
        """Cancels its build, if it is being built. Raises InUse while sandboxes come from it."""
        await self._transport.call("DELETE", f"/v1/templates/{quoted(ref)}", again=True)

    @staticmethod
    def _view(answer: Any) -> "TemplateView":
        view: TemplateView = shaped("templates.TemplateView", answer)
        return view


class AsyncKeys:
    """API keys."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str) -> "KeyCreated":
        """A new key; its `secret` is shown this once."""
        created: KeyCreated = shaped(
            "keys.KeyCreated", await self._transport.call("POST", "/v1/keys", body={"name": name})
        )
        return created

    async def list(self) -> "AsyncIterator[KeyView]":
        async for item in pages(self._transport, "/v1/keys"):
            yield shaped("keys.KeyView", item)

    async def revoke(self, key_id: str) -> None:
        await self._transport.call("DELETE", f"/v1/keys/{quoted(key_id)}", again=True)


_defaults: "WeakKeyDictionary[Any, AsyncClient]" = WeakKeyDictionary()


def default_client() -> AsyncClient:
    """The client for calls that were given none, made from the environment or the configuration file at first use."""
    owner = async_scope()
    client = _defaults.get(owner)
    if client is None or client.transport.address != resolve():
        client = _defaults[owner] = AsyncClient()
    return client
