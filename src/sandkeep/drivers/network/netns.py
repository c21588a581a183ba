"""The driver of contracts.network: one network namespace, one veth pair and a few nft rules per sandbox.

Every sandbox sees 10.0.0.2/30 behind 10.0.0.1, so that a restored or forked one finds the address it was saved with;
the host tells them apart by a unique address, translated statelessly on the host's end of the veth (kernel >= 5.16).
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from sandkeep.contracts.network import Attachment
from sandkeep.domain.errors import Conflict, Internal
from sandkeep.domain.ids import body
from sandkeep.domain.sandbox import NetworkMode
from sandkeep.drivers.network import conntrack, links, namespaces, rtnetlink, rulesets
from sandkeep.drivers.network.guard import Guard
from sandkeep.drivers.network.layout import GATEWAY, INNER, NetworkSettings
from sandkeep.drivers.network.nftables import Nft, NftError, generation, open_nft
from sandkeep.drivers.network.rtnetlink import Netlink

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DEFAULT_MTU = 1500
_THREADS = 4
_GATHER = 0.05


class NetnsNetworks:
    """Fulfils contracts.network.Networks. Needs root. All work is a few milliseconds in worker threads, one change at
    a time (the kernel's own lock would serialise them anyway). Errors of the kernel are Internal with its words."""

    def __init__(self, settings: NetworkSettings, nft: Nft | None = None) -> None:
        self.settings = settings
        self.slots = settings.slots
        self._guard = Guard(settings, nft or open_nft())
        self._owners: dict[int, str] = {}
        self._checked: int | None = None
        self._mtu = _DEFAULT_MTU
        self._lock = threading.Lock()
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._slow = anyio.CapacityLimiter(1)
        self._departing: set[int] = set()
        self._farewell: asyncio.Task[None] | None = None

    async def _work(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        def locked() -> _T:
            with self._lock:
                return function(*args, **kwargs)

        try:
            return await anyio.to_thread.run_sync(locked, limiter=self._limiter)
        except (NftError, OSError) as error:
            raise Internal(f"the network failed: {error}", hint="run `sandkeep doctor` on this node") from error

    async def open(self) -> None:
        await self._work(self._open)

    def _open(self) -> None:
        folder = self.settings.namespaces
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        namespaces.share_mounts(folder)
        self._guard.open()
        self._owners = links.owners(self.settings)
        with Netlink() as host:
            host.send(rtnetlink.unreachable_add(self.settings.address_range))
            self._mtu = host.uplink_mtu() or _DEFAULT_MTU

    async def close(self) -> None:
        await self._departed()
        await self._work(self._close)

    def _close(self) -> None:
        settings = self.settings
        slots = list(self._attached())
        for slot in slots:
            self._dissolve(slot)
        conntrack.end_flows([settings.address(slot) for slot in slots])
        with Netlink() as host:
            for slot in links.interfaces(settings):
                links.delete_link(settings, host, slot)
            with contextlib.suppress(ProcessLookupError):
                host.send(rtnetlink.unreachable_delete(settings.address_range))
        self._guard.close()
        namespaces.unshare_mounts(settings.namespaces)
        with contextlib.suppress(FileNotFoundError):
            settings.namespaces.rmdir()

    def describe(self, sandbox_id: str, slot: int, mode: NetworkMode) -> Attachment:
        return Attachment(
            sandbox_id=sandbox_id,
            slot=slot,
            namespace=self.settings.namespace(sandbox_id, slot),
            interface=self.settings.interface(slot),
            address=self.settings.address(slot),
            inner_address=INNER,
            gateway=GATEWAY,
            dns=(GATEWAY,) if mode is NetworkMode.INTERNET else (),
            mtu=self._mtu,
            mode=mode,
        )

    async def attach(self, sandbox_id: str, slot: int, mode: NetworkMode, *, blocked: bool = False) -> Attachment:
        """Raises Conflict when the slot's network belongs to another sandbox."""
        self.settings.check_slot(slot)
        if slot in self._departing:
            await self._departed()  # it must not find the flows of the next one
        await self._work(self._attach, sandbox_id, slot, mode, blocked)
        return self.describe(sandbox_id, slot, mode)

    def _attach(self, sandbox_id: str, slot: int, mode: NetworkMode, blocked: bool) -> None:
        settings, owner = self.settings, self._owners.get(slot)
        if owner not in (None, body(sandbox_id)):
            raise Conflict(f"slot {slot} is the network of another sandbox", slot=slot, owner=owner)
        path = settings.namespace(sandbox_id, slot)
        rules = rulesets.expected(mode)
        with Netlink() as host:
            self._mtu = host.uplink_mtu() or _DEFAULT_MTU
            index = links.index_of(settings.interface(slot))
            if os.path.lexists(path):
                if self._adopt(host, path, slot, index, rules, blocked):
                    return
            elif index is not None:
                links.delete_link(settings, host, slot)  # the former one's, not reaped yet
            try:
                with namespaces.create(path) as inner:
                    self._owners[slot] = body(sandbox_id)
                    index = links.make_pair(settings, host, path, slot, self._mtu)
                    self._guard.add(slot, rules, blocked=blocked)
                    links.configure_host(settings, host, slot, index)
                    links.configure_inside(inner)
            except BaseException:
                with contextlib.suppress(NftError, OSError):
                    self._dissolve(slot)
                raise

    def _adopt(
        self, host: Netlink, path: Path, slot: int, index: int | None, rules: frozenset[str], blocked: bool
    ) -> bool:
        """A network that is there, whole or half-made by a runner that died: complete it. False when only its file
        was there, which is removed."""
        if not namespaces.is_namespace(path):
            path.unlink()
            if index is not None:
                links.delete_link(self.settings, host, slot)
            return False
        if index is None:
            index = links.make_pair(self.settings, host, path, slot, self._mtu)
        self._guard.add(slot, rules, blocked=blocked)
        links.configure_host(self.settings, host, slot, index)
        if not links.is_configured_inside(path):
            links.refresh_inside(path)
        self._owners[slot] = path.name.partition("-")[2]
        return True

    async def detach(self, sandbox_id: str, slot: int) -> None:
        """When it returns nothing passes any more, and whatever a peer sends is reset. Right after, in the background
        (finding a sandbox's flows takes the kernel 10 ms), peers that are silent are reset, too, and all other flows
        forgotten. The kernel reaps the link within about 0.1 s, as soon as no process lives in the namespace."""
        self.settings.check_slot(slot)
        if await self._work(self._detach, sandbox_id, slot):
            self._departing.add(slot)
            if self._farewell is None or self._farewell.done():
                self._farewell = asyncio.create_task(self._say_farewell())

    def _detach(self, sandbox_id: str, slot: int) -> bool:
        mine = self._owners.get(slot) in (
            None,
            sandbox_id.partition("_")[2],
        )  # "": what has no name has no owner either
        if mine:
            self._dissolve(slot)
        return mine

    async def _say_farewell(self) -> None:
        while self._departing:
            # One walk through conntrack for a burst of them; it holds back the grace periods that detach waits for.
            await asyncio.sleep(_GATHER)
            slots = frozenset(self._departing)
            addresses = [self.settings.address(slot) for slot in slots]
            # Peers that hear nothing run into their own timeouts: not worth a failure that nobody awaits.
            with contextlib.suppress(OSError):
                await anyio.to_thread.run_sync(conntrack.end_flows, addresses, limiter=self._slow)
            self._departing -= slots

    async def _departed(self) -> None:
        if self._farewell is not None:
            await asyncio.wait([self._farewell])

    def _dissolve(self, slot: int) -> None:
        settings = self.settings
        self._guard.remove(slot)  # first: while the link lives, no element means no way out
        with Netlink() as host:
            links.withdraw_route(settings, host, slot)
        owner = self._owners.pop(slot, None)
        if owner is None:
            owner = links.owners(settings).get(slot)
        if owner is not None:
            namespace = settings.namespaces / f"{slot}-{owner}"
            with contextlib.suppress(OSError):
                namespaces.inside(namespace, links.forsake_connections)
            namespaces.drop(namespace)

    async def refresh_inside(self, attachment: Attachment) -> None:
        await self._work(links.refresh_inside, attachment.namespace)

    async def block(self, attachment: Attachment) -> None:
        await self._work(self._guard.hold, attachment.slot, frozenset({rulesets.BLOCKED}))

    async def reset_tcp(self, attachment: Attachment) -> None:
        await self._work(self._guard.hold, attachment.slot, frozenset({rulesets.BLOCKED, rulesets.RESETTING}))

    async def refuse_connecting(self, attachment: Attachment) -> int:
        return await self._work(conntrack.refuse_connecting, attachment.address)

    async def unblock(self, attachment: Attachment) -> None:
        await self._work(self._guard.hold, attachment.slot, frozenset())

    async def attached(self) -> dict[int, str]:
        return await self._work(self._attached)

    def _attached(self) -> dict[int, str]:
        named = links.owners(self.settings)
        nameless = links.interfaces(self.settings) | self._guard.read().slots.keys()
        return dict.fromkeys(nameless, "") | named

    async def missing(self, attachment: Attachment) -> str:
        return await self._work(self._guard.missing, attachment.slot, rulesets.expected(attachment.mode))

    async def repair(self, attachments: list[Attachment]) -> int:
        """Sandboxes whose link is gone are left out: no rule can bring that back."""
        return await self._work(self._repair, attachments)

    def _repair(self, attachments: list[Attachment]) -> int:
        alive = links.interfaces(self.settings)
        # A slot that was detached since the list was made must not get rules again: nobody would remove them.
        here = [one for one in attachments if one.slot in alive and self._owners.get(one.slot) == body(one.sandbox_id)]
        missing, now = 0, generation()
        if now is None or now != self._checked:  # a full look lists every rule; nothing was changed since the last one
            missing = self._guard.repair({one.slot: rulesets.expected(one.mode) for one in here})
            self._checked = now
        with Netlink() as host:
            host.send(rtnetlink.unreachable_add(self.settings.address_range))
            known = {str(route.destination.network_address) for route in host.routes()}
            for one in here:
                index = links.index_of(one.interface) if one.address not in known else None
                if index is not None:
                    missing += 1
                    with contextlib.suppress(FileNotFoundError):
                        links.configure_host(self.settings, host, one.slot, index)
        return missing
