"""Namespace and veth pair of one slot: made, mended and taken away. Synchronous, raw netlink."""

import contextlib
import errno
import os
import socket
from pathlib import Path

from sandkeep.drivers.network import namespaces, rtnetlink
from sandkeep.drivers.network.layout import (
    GATEWAY,
    HOST_MAC,
    INNER,
    INNER_MAC,
    INNER_PREFIX,
    NetworkSettings,
    parse_namespace,
)
from sandkeep.drivers.network.rtnetlink import LOOPBACK, Netlink

_PEER = "eth0"
_GONE = (errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.ENOENT)


def index_of(interface: str) -> int | None:
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(interface)
    return None


def make_pair(settings: NetworkSettings, host: Netlink, namespace: Path, slot: int, mtu: int) -> int:
    """The pair, both ends down, the peer right in the namespace. Returns the index of the host's end."""
    name = settings.interface(slot)
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        host.send(rtnetlink.veth(name, HOST_MAC, _PEER, INNER_MAC, fd, mtu))
    finally:
        os.close(fd)
    return socket.if_nametoindex(name)


def configure_host(settings: NetworkSettings, host: Netlink, slot: int, index: int) -> None:
    """Up, with the gateway address and the way to the unique address. Idempotent. Rules must be in place."""
    # Strict: without the translation (somebody flushed nft) 10.0.0.2 is no valid source here, and all is dropped.
    namespaces.write_sysctl(f"ipv4/conf/{settings.interface(slot)}/rp_filter", "1")
    unique = settings.address(slot)
    host.send(
        rtnetlink.link_up(index),
        rtnetlink.address_add(index, GATEWAY, 32, link_scope=True),
        rtnetlink.route_to(index, unique),
        rtnetlink.neighbour_add(index, unique, INNER_MAC),
    )


def configure_inside(inner: Netlink) -> None:
    """Addresses and route of eth0, by a socket that lives inside. Idempotent."""
    found = inner.link(_PEER)
    if found is None:
        raise OSError(errno.ENODEV, "no eth0 inside")
    index, _ = found
    inner.send(
        rtnetlink.link_up(index),
        rtnetlink.link_up(LOOPBACK),
        rtnetlink.address_add(index, INNER, INNER_PREFIX),
        rtnetlink.route_via(index, GATEWAY),
    )


def refresh_inside(namespace: Path) -> None:
    def work() -> None:
        with Netlink() as inner:
            configure_inside(inner)

    namespaces.inside(namespace, work)


def is_configured_inside(namespace: Path) -> bool:
    """Whether eth0 was ever brought up. Its address says nothing: a runtime with a stack of its own takes it away."""

    def work() -> bool:
        with Netlink() as inner:
            found = inner.link(_PEER)
            return found is not None and found[1]

    return namespaces.inside(namespace, work)


def withdraw_route(settings: NetworkSettings, host: Netlink, slot: int) -> None:
    """From now on the address is unreachable (the range's own route), also while the link still lingers."""
    index = index_of(settings.interface(slot))
    if index is not None:
        try:
            host.send(rtnetlink.route_delete(index, settings.address(slot)))
        except OSError as error:
            if error.errno not in _GONE:
                raise


def forsake_connections() -> None:
    """In a namespace whose processes are gone. Connections that they left half-closed would go on repeating their FIN
    to peers that can no longer answer, and hold the namespace with its link for minutes: one more try is enough."""
    namespaces.write_sysctl("ipv4/tcp_orphan_retries", "1")


def delete_link(settings: NetworkSettings, host: Netlink, slot: int) -> None:
    """At once, which takes 16 to 32 ms; for a link whose namespace is held by processes or still being reaped."""
    index = index_of(settings.interface(slot))
    if index is not None:
        try:
            host.send(rtnetlink.link_delete(index))
        except OSError as error:
            if error.errno not in _GONE:
                raise


def owners(settings: NetworkSettings) -> dict[int, str]:
    """slot -> body of the sandbox id, of every namespace file of this instance."""
    try:
        names = os.listdir(settings.namespaces)
    except FileNotFoundError:
        return {}
    return dict(found for found in map(parse_namespace, names) if found is not None)


def interfaces(settings: NetworkSettings) -> set[int]:
    """Slots of every link of this instance."""
    found = (settings.slot_of(name) for _, name in socket.if_nameindex())
    return {slot for slot in found if slot is not None}
