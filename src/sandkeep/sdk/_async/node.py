"""The node behind the server: what it alone knows, and what lies there in quarantine. For administrators."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sandkeep.sdk._async.lists import pages
from sandkeep.sdk._async.transport import AsyncTransport
from sandkeep.sdk.requests import given, quoted, shaped

if TYPE_CHECKING:
    from sandkeep.wire.platform import AdoptionView, QuarantinedView
    from sandkeep.wire.sandboxes import SandboxView


class AsyncAdoption:
    """Sandboxes that the node alone knows: after the server's database was lost, or restored from an older copy."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def plan(self) -> "AsyncIterator[AdoptionView]":
        """What there is to adopt; changes nothing."""
        async for item in pages(self._transport, "/v1/node/adoption"):
            yield shaped("platform.AdoptionView", item)

    async def adopt(
        self, ids: Sequence[str] | None = None, *, names: Mapping[str, str] | None = None
    ) -> "Sequence[AdoptionView]":
        """These, or all that nothing holds back. `names`: id -> another name than the node has."""
        body = given(ids=None if ids is None else list(ids), names=None if names is None else dict(names))
        answer = await self._transport.call("POST", "/v1/node/adoption", body=body)
        return [shaped("platform.AdoptionView", item) for item in answer["items"]]


class AsyncQuarantine:
    """Disks and memory images that no record of the node names."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> "AsyncIterator[QuarantinedView]":
        async for item in pages(self._transport, "/v1/node/quarantine"):
            yield shaped("platform.QuarantinedView", item)

    async def restore(
        self, quarantined_id: str, *, name: str | None = None, runtime: str | None = None
    ) -> "SandboxView":
        """A stopped sandbox on a quarantined disk."""
        path = f"/v1/node/quarantine/{quoted(quarantined_id)}/restore"
        answer = await self._transport.call("POST", path, body=given(name=name, runtime=runtime))
        view: SandboxView = shaped("sandboxes.SandboxView", answer)
        return view

    async def delete(self, quarantined_id: str) -> None:
        """For good."""
        await self._transport.call("DELETE", f"/v1/node/quarantine/{quoted(quarantined_id)}", again=True)
