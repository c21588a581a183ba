"""What contracts.network promises: of the real driver in a private namespace (root), and of the fake what makes sense.

Sandboxes are plain threads in the driver's namespaces; what is outside is tests/support/netns.py.
"""

import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import pytest

from sandkeep.contracts.network import Attachment, Networks
from sandkeep.domain.errors import Conflict, InvalidArgument
from sandkeep.domain.ids import IdKind, body, new_id
from sandkeep.domain.sandbox import NetworkMode
from sandkeep.drivers.fake.networks import FakeNetworks
from sandkeep.drivers.network import host, rtnetlink
from sandkeep.drivers.network.layout import GATEWAY, NetworkSettings
from sandkeep.drivers.network.netns import NetnsNetworks
from sandkeep.drivers.network.nftables import NftLibrary, NftProgram, open_nft
from sandkeep.drivers.network.resolver_keeper import ResolverKeeper, ResolverSettings
from sandkeep.drivers.network.rtnetlink import LOOPBACK, Netlink
from support import netns
from support.netns import (
    AZURE,
    CARRIER_GRADE,
    METADATA,
    NEIGHBOUR,
    OTHER,
    PORT,
    PUBLIC,
    ROUTER,
    TRUTH,
    UPLINK,
    Internet,
)

REAL = pytest.param("netns", marks=pytest.mark.requires("netns"))
NOBODY = 65534
AGENT = 49983
_T = TypeVar("_T")
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def settings_of(work: Path, prefix: str = "tn", number: int = 1) -> NetworkSettings:
    return NetworkSettings(prefix, work / prefix, IPv4Network(f"10.21{number}.0.0/16"), dns_port=5300 + number)


@dataclass
class World:
    networks: NetnsNetworks
    internet: Internet
    work: Path
    resolv_conf: Path

    async def attach(self, slot: int, mode: NetworkMode = NetworkMode.INTERNET, *, blocked: bool = False) -> Attachment:
        return await self.networks.attach(new_id(IdKind.SANDBOX), slot, mode, blocked=blocked)


async def inside(attachment: Attachment, function: Callable[..., _T], *args: object) -> _T:
    return await anyio.to_thread.run_sync(netns.inside, attachment.namespace, partial(function, *args))


async def dial(attachment: Attachment, address: str, port: int = PORT) -> str:
    return await inside(attachment, netns.dial, address, port)


async def reaches(attachment: Attachment, address: str) -> None:
    """Soon: a neighbour that did not answer while nothing passed is held for unreachable for a moment."""
    with anyio.fail_after(10):
        while (answer := await dial(attachment, address)) == "unreachable":
            await anyio.sleep(0.1)
    assert answer == f"seen as {UPLINK}"


async def ask(attachment: Attachment, address: str, port: int = PORT) -> bytes | None:
    return await inside(attachment, netns.ask, address, port)


async def lookup(attachment: Attachment, name: str, server: str = GATEWAY, *, by_tcp: bool = False) -> str | None:
    if by_tcp:
        return netns.address_in(await inside(attachment, netns.ask_by_tcp, server, netns.query(name)))
    return netns.address_in(await inside(attachment, netns.ask, server, 53, netns.query(name), 2.0))


@contextlib.contextmanager
def guest_service(attachment: Attachment, port: int = AGENT) -> Iterator[None]:
    servers = netns.inside(attachment.namespace, partial(netns.listeners, "0.0.0.0", port))
    try:
        yield
    finally:
        netns._stop(servers)


def kernel_objects(prefix: str, work: Path) -> list[str]:
    """Names of everything of an instance that the kernel knows."""
    links = [name for _, name in socket.if_nameindex() if name.startswith(f"{prefix}v")]
    ruleset = [line for line in NftLibrary().run("list ruleset").splitlines() if re.search(rf"{prefix}(v|_)", line)]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{work}/{prefix}/" in line]
    return links + ruleset + mounts


async def until(check: Callable[[], bool], seconds: float = 3.0) -> None:
    with anyio.fail_after(seconds):
        while not check():
            await anyio.sleep(0.01)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Internet]:
    netns.private_network()
    with netns.internet(tmp_path) as made:
        yield made


@pytest.fixture
async def world(outside: Internet, tmp_path: Path) -> AsyncIterator[World]:
    networks = NetnsNetworks(settings_of(tmp_path))
    await networks.open()
    try:
        with tempfile.TemporaryDirectory() as readable:  # by the resolver's user, which tmp_path is not
            Path(readable).chmod(0o755)
            yield World(networks, outside, tmp_path, Path(readable) / "resolv.conf")
    finally:
        await networks.close()
        assert kernel_objects("tn", tmp_path) == []


@pytest.fixture(params=[REAL, "fake"])
async def networks(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Networks]:
    made: Networks
    if request.param == "fake":
        made = FakeNetworks(tmp_path)
    else:
        netns.private_network()
        made = NetnsNetworks(settings_of(tmp_path))
    await made.open()
    yield made
    await made.close()
    assert await made.attached() == {}


# What every driver, real or fake, promises about names and states.


async def test_an_attachment_is_what_describe_says(networks: Networks) -> None:
    sandbox = new_id(IdKind.SANDBOX)
    made = await networks.attach(sandbox, 7, NetworkMode.INTERNET)
    assert made == networks.describe(sandbox, 7, NetworkMode.INTERNET)
    assert (made.inner_address, made.gateway, made.dns) == ("10.0.0.2", "10.0.0.1", ("10.0.0.1",))
    assert networks.describe(sandbox, 7, NetworkMode.NONE).dns == ()
    assert await networks.attached() == {7: body(sandbox)}


async def test_attach_and_detach_are_idempotent(networks: Networks) -> None:
    sandbox = new_id(IdKind.SANDBOX)
    first = await networks.attach(sandbox, 1, NetworkMode.INTERNET)
    assert await networks.attach(sandbox, 1, NetworkMode.INTERNET) == first
    await networks.refresh_inside(first)
    for step in (networks.block, networks.block, networks.reset_tcp, networks.unblock, networks.unblock):
        await step(first)
    assert await networks.repair([first]) == 0
    await networks.detach(sandbox, 1)
    await networks.detach(sandbox, 1)
    again = await networks.attach(sandbox, 1, NetworkMode.NONE)
    assert again.mode is NetworkMode.NONE
    await networks.detach(sandbox, 1)


async def test_a_slot_has_one_owner(networks: Networks) -> None:
    owner, other = new_id(IdKind.SANDBOX), new_id(IdKind.SANDBOX)
    await networks.attach(owner, 3, NetworkMode.INTERNET)
    with pytest.raises(Conflict):
        await networks.attach(other, 3, NetworkMode.INTERNET)
    await networks.detach(other, 3)
    assert await networks.attached() == {3: body(owner)}
    for slot in (0, networks.slots + 1):
        with pytest.raises(InvalidArgument):
            await networks.attach(other, slot, NetworkMode.INTERNET)


# What only packets can tell.


@pytest.mark.requires("netns")
async def test_the_public_internet_is_open_and_sees_the_hosts_address(world: World) -> None:
    box = await world.attach(1)
    assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
    assert await dial(box, OTHER) == f"seen as {UPLINK}"
    assert await ask(box, PUBLIC) == UPLINK.encode()
    assert await inside(box, ping, PUBLIC)


@pytest.mark.requires("netns")
async def test_what_is_private_is_refused_at_once(world: World) -> None:
    one, two = await world.attach(1), await world.attach(2)
    unknown = world.networks.settings.address(99)
    forbidden = (METADATA, AZURE, NEIGHBOUR, CARRIER_GRADE, two.address, one.address, unknown, UPLINK, GATEWAY)
    with netns.host_listeners(PORT, world.networks.settings.dns_port), guest_service(two, PORT):
        assert netns.dial(two.address) == f"seen as {GATEWAY}"
        for address in (*forbidden, "0.0.0.0"):
            started = time.monotonic()
            assert await dial(one, address) == "refused", address
            assert time.monotonic() - started < 0.5
            assert await ask(one, address) is None, address
        for port in (world.networks.settings.dns_port, 22, AGENT):
            assert await dial(one, GATEWAY, port) == "refused"
            assert await ask(one, GATEWAY, port) is None
    for address in ("224.0.0.1", "255.255.255.255", "240.0.0.1"):
        assert await ask(one, address) is None


@pytest.mark.requires("netns")
async def test_the_host_reaches_every_port_inside(world: World) -> None:
    for slot, mode in ((1, NetworkMode.INTERNET), (2, NetworkMode.NONE)):
        box = await world.attach(slot, mode)
        with guest_service(box):
            assert netns.dial(box.address, AGENT) == f"seen as {GATEWAY}"
            assert netns.ask(box.address, AGENT) == GATEWAY.encode()


@pytest.mark.requires("netns")
async def test_network_none_reaches_nothing(world: World) -> None:
    box = await world.attach(1, NetworkMode.NONE)
    async with resolver(world):
        for address in (PUBLIC, OTHER, METADATA, GATEWAY, UPLINK):
            assert await dial(box, address) == "refused"
            assert await ask(box, address) is None
        assert await lookup(box, "example.com") is None
        assert await dial(box, GATEWAY, 53) == "refused"
        box = await world.networks.attach(box.sandbox_id, 1, NetworkMode.INTERNET)
        assert await lookup(box, "example.com") == TRUTH
        box = await world.networks.attach(box.sandbox_id, 1, NetworkMode.NONE)
        assert await dial(box, PUBLIC) == "refused"


@pytest.mark.requires("netns")
async def test_nobody_outside_reaches_in(world: World) -> None:
    box = await world.attach(1)
    with Netlink() as netlink:
        netlink.send(rtnetlink.link_up(socket.if_nametoindex("world")))
    with guest_service(box, PORT):
        refused = await anyio.to_thread.run_sync(netns.inside, world.internet.path, partial(netns.dial, box.address))
    assert refused == "refused"


@pytest.mark.requires("netns")
async def test_a_host_without_a_way_out_refuses_at_once(tmp_path: Path) -> None:
    netns.private_network()
    networks = NetnsNetworks(settings_of(tmp_path))
    await networks.open()
    try:
        box = await networks.attach(new_id(IdKind.SANDBOX), 1, NetworkMode.INTERNET)
        for address in (PUBLIC, METADATA, NEIGHBOUR):
            assert await dial(box, address) == "refused"
        await networks.reset_tcp(box)
        assert await dial(box, PUBLIC) == "refused"
    finally:
        await networks.close()


@pytest.mark.requires("netns")
async def test_ipv6_goes_nowhere(world: World) -> None:
    box = await world.attach(1)

    addresses = await inside(box, Path("/proc/thread-self/net/if_inet6").read_text)
    assert [(line.split()[0].lstrip("0"), line.split()[-1]) for line in addresses.splitlines()] == [("1", "lo")]
    before = dropped(world, 1, "meta protocol != ip")
    await inside(box, send_raw, 0x86DD, b"\x60" + bytes(39))
    assert dropped(world, 1, "meta protocol != ip") == before + 1


@pytest.mark.requires("netns")
async def test_a_false_source_address_is_dropped(world: World) -> None:
    box = await world.attach(1)

    def spoof() -> None:
        with Netlink() as netlink:
            netlink.send(rtnetlink.address_add(LOOPBACK, "10.0.0.9", 32))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("10.0.0.9", 0))
            sock.sendto(b"spoofed", (PUBLIC, PORT))

    await dial(box, PUBLIC)  # the gateway's hardware address is known now
    await inside(box, spoof)
    assert dropped(world, 1, "ip saddr != 10.0.0.2") == 1
    arp = b"\0\1\x08\0\6\4\0\1" + b"\2\0\0\0\0\2" + socket.inet_aton(NEIGHBOUR) + bytes(6) + socket.inet_aton(GATEWAY)
    before = dropped(world, 1, "meta protocol != ip")
    await inside(box, send_raw, 0x0806, arp)
    assert dropped(world, 1, "meta protocol != ip") == before + 1


@pytest.mark.requires("netns")
async def test_names_come_from_the_gateway_and_nowhere_else(world: World) -> None:
    box = await world.attach(1)
    async with resolver(world) as keeper:
        assert await lookup(box, "example.com") == TRUTH
        assert await lookup(box, "example.com", by_tcp=True) == TRUTH
        for liar in (PUBLIC, OTHER, ROUTER):
            assert await lookup(box, "example.com", liar) is None
            assert await lookup(box, "example.com", liar, by_tcp=True) is None
        assert world.internet.liar.queries == 0
        short = await inside(box, netns.ask, GATEWAY, 53, netns.query("big.example", 16), 2.0)
        assert short is not None
        assert short[2] & 0x02  # truncated: come again by TCP
        whole = await inside(box, netns.ask_by_tcp, GATEWAY, netns.query("big.example", 16))
        assert whole is not None
        assert len(whole) > 3000
        assert netns.ask(GATEWAY, 5301, netns.query("example.com")) is None  # the host is no guest
        assert keeper.pid is not None


@pytest.mark.requires("netns")
async def test_blocked_reaches_nothing_but_answers_the_host(world: World) -> None:
    box = await world.attach(1, blocked=True)
    async with resolver(world):
        with guest_service(box):
            for _ in range(2):
                assert await dial(box, PUBLIC) == "refused"
                assert await ask(box, PUBLIC) is None
                assert await lookup(box, "example.com") is None
                assert netns.dial(box.address, AGENT) == f"seen as {GATEWAY}"
                await world.networks.unblock(box)
                assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
                assert await lookup(box, "example.com") == TRUTH
                await world.networks.block(box)


@pytest.mark.requires("netns")
async def test_block_resets_open_connections(world: World) -> None:
    box = await world.attach(1)
    with await inside(box, connect, PUBLIC) as sock:
        assert sock.recv(100)
        await world.networks.block(box)
        with pytest.raises(ConnectionResetError):
            await anyio.to_thread.run_sync(talk, sock)


@pytest.mark.requires("netns")
async def test_reset_tcp_resets_everything_also_what_the_host_opened(world: World) -> None:
    box = await world.attach(1)
    listener = await inside(box, socket.create_server, ("0.0.0.0", AGENT))
    with listener, await inside(box, connect, PUBLIC) as out, connect(box.address, AGENT) as host_side:
        assert out.recv(100)
        guest_side, _ = listener.accept()
        with guest_side:
            await world.networks.reset_tcp(box)
            with pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(talk, out)
            with pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(talk, guest_side)
            with pytest.raises(ConnectionResetError):  # what the host still holds hears it as soon as it speaks
                await anyio.to_thread.run_sync(talk, host_side)
        assert netns.dial(box.address, AGENT) == "refused"
        assert await dial(box, PUBLIC) == "refused"
        await world.networks.unblock(box)
        assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
        with connect(box.address, AGENT):
            pass


@pytest.mark.requires("netns")
async def test_connections_that_wait_for_an_answer_are_found(world: World) -> None:
    box, other = await world.attach(1), await world.attach(2)

    def begin() -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((netns.SILENT, 80))
        return sock

    with await inside(box, begin), await inside(box, connect, PUBLIC) as out:
        assert out.recv(100)
        assert await world.networks.refuse_connecting(other) == 0
        assert await world.networks.refuse_connecting(box) == 1


@pytest.mark.requires("netns")
async def test_peers_of_a_killed_sandbox_get_a_reset(world: World) -> None:
    box = await world.attach(1)

    def serve() -> socket.socket:
        return socket.create_server((PUBLIC, 4000))

    with await anyio.to_thread.run_sync(netns.inside, world.internet.path, serve) as listener:
        quiet = await inside(box, connect, PUBLIC, 4000)
        peer, _ = listener.accept()
        peer.settimeout(3)
        with peer:
            netns.vanish(quiet)
            await world.networks.detach(box.sandbox_id, 1)
            with pytest.raises(ConnectionResetError):  # though it only listens
                await anyio.to_thread.run_sync(peer.recv, 1)
    with pytest.raises(OSError, match="host"):
        connect(box.address, AGENT)  # unreachable at once; nothing leaves by the default route


@pytest.mark.requires("netns")
async def test_a_flushed_ruleset_lets_nothing_pass_and_is_repaired(world: World) -> None:
    one, two = await world.attach(1), await world.attach(2, NetworkMode.NONE)
    held = await world.attach(3, blocked=True)
    boxes = [one, two, held]
    assert await world.networks.repair(boxes) == 0
    assert [await world.networks.missing(box) for box in boxes] == [""] * 3
    NftLibrary().run("flush ruleset")
    assert all([await world.networks.missing(box) for box in boxes])
    with netns.host_listeners(PORT):
        for box in boxes:
            assert await ask(box, PUBLIC) is None
            assert await ask(box, UPLINK) is None
    assert await world.networks.repair(boxes) > 0
    assert await world.networks.repair(boxes) == 0
    await reaches(one, PUBLIC)
    assert await dial(two, PUBLIC) == "refused"
    assert await dial(held, PUBLIC) == "refused"
    nft = NftLibrary()
    for damage in (
        "flush table inet tn_guard",
        "flush table netdev tn_link",
        "delete table netdev tn_link",
        'delete element inet tn_guard to_outside { "tnv1" }',
    ):
        nft.run(damage)
        assert await world.networks.missing(one), damage
        assert await world.networks.repair(boxes) > 0, damage
        assert await dial(one, PUBLIC) == f"seen as {UPLINK}", damage
        assert await dial(held, PUBLIC) == "refused", damage
    nft.run("flush ruleset")
    fresh = await world.attach(4)  # an attach does not wait for the next repair
    assert await dial(fresh, PUBLIC) == f"seen as {UPLINK}"
    nft.run("flush ruleset")
    await world.networks.detach(fresh.sandbox_id, 4)


@pytest.mark.requires("netns")
async def test_a_lost_route_is_repaired(world: World) -> None:
    box = await world.attach(1)
    with Netlink() as netlink:
        netlink.send(rtnetlink.route_delete(socket.if_nametoindex(box.interface), box.address))
    assert await world.networks.repair([box]) == 1
    with guest_service(box):
        assert netns.dial(box.address, AGENT) == f"seen as {GATEWAY}"


@pytest.mark.requires("netns")
async def test_a_restarted_runner_disturbs_nothing(world: World) -> None:
    one, held = await world.attach(1), await world.attach(2, blocked=True)
    with await inside(one, connect, PUBLIC) as sock:
        assert sock.recv(100)
        restarted = NetnsNetworks(settings_of(world.work))
        await restarted.open()
        assert talk(sock) == b"hello"
        assert await restarted.attached() == {1: body(one.sandbox_id), 2: body(held.sandbox_id)}
        assert await restarted.attach(one.sandbox_id, 1, NetworkMode.INTERNET) == one
        assert talk(sock) == b"hello"
        assert await dial(held, PUBLIC) == "refused"
        # Another version of the base rules is put in place around the living.
        changed = NetnsNetworks(
            NetworkSettings("tn", world.work / "tn", IPv4Network("10.211.0.0/16"), 5301, (IPv4Network(f"{OTHER}/32"),))
        )
        await changed.open()
        assert talk(sock) == b"hello"
        assert await dial(one, OTHER) == "refused"
        assert await dial(held, PUBLIC) == "refused"
        await changed.unblock(held)
        assert await dial(held, PUBLIC) == f"seen as {UPLINK}"
    await changed.detach(held.sandbox_id, 2)
    await changed.detach(one.sandbox_id, 1)
    await until(lambda: kernel_slots("tn") == [])
    await changed._departed()
    await world.networks.open()


@pytest.mark.requires("netns")
async def test_a_half_made_network_is_completed(world: World) -> None:
    sandbox = new_id(IdKind.SANDBOX)
    path = world.networks.settings.namespace(sandbox, 5)
    path.touch()  # the runner died between the file and the mount
    box = await world.networks.attach(sandbox, 5, NetworkMode.INTERNET)
    assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
    with Netlink() as netlink:
        netlink.send(rtnetlink.link_delete(socket.if_nametoindex(box.interface)))
    assert await dial(box, PUBLIC) == "unreachable"
    await world.networks.attach(sandbox, 5, NetworkMode.INTERNET)
    assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
    await world.networks.detach(sandbox, 5)
    box = await world.networks.attach(sandbox, 5, NetworkMode.INTERNET)  # at once, while the link is being reaped
    assert await dial(box, PUBLIC) == f"seen as {UPLINK}"


@pytest.mark.requires("netns")
async def test_refresh_brings_addresses_back(world: World) -> None:
    box = await world.attach(1)

    def take_away() -> None:
        with Netlink() as netlink:
            added = rtnetlink.address_add(2, "10.0.0.2", 30)
            netlink.send(rtnetlink.Request(21, 0, added.body))

    await inside(box, take_away)
    assert await dial(box, PUBLIC) == "unreachable"
    await world.networks.refresh_inside(box)
    assert await dial(box, PUBLIC) == f"seen as {UPLINK}"


@pytest.mark.requires("netns")
async def test_fifty_come_and_go_and_leave_nothing(world: World) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    idle = [line for line in kernel_objects("tn", world.work) if "elements" not in line]
    ids = [new_id(IdKind.SANDBOX) for _ in range(50)]
    boxes: list[Attachment] = []

    async def attach(slot: int, sandbox: str) -> None:
        boxes.append(await world.networks.attach(sandbox, slot, NetworkMode.INTERNET))

    async with anyio.create_task_group() as group:
        for slot, sandbox in enumerate(ids, 1):
            group.start_soon(attach, slot, sandbox)
    assert len(await world.networks.attached()) == 50
    for box in boxes[::10]:
        assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
    async with anyio.create_task_group() as group:
        for slot, sandbox in enumerate(ids, 1):
            group.start_soon(world.networks.detach, sandbox, slot)
    await until(lambda: kernel_slots("tn") == [])
    assert await world.networks.attached() == {}
    await world.networks._departed()
    assert kernel_objects("tn", world.work) == idle
    assert os.listdir(world.networks.settings.namespaces) == []
    await until(lambda: len(os.listdir("/proc/self/fd")) <= fds)


@pytest.mark.requires("netns")
async def test_two_instances_side_by_side(world: World) -> None:
    second = NetnsNetworks(settings_of(world.work, "tm", 2))
    await second.open()
    mine = await world.attach(1)
    other = await second.attach(new_id(IdKind.SANDBOX), 1, NetworkMode.INTERNET)
    assert (mine.inner_address, mine.gateway) == (other.inner_address, other.gateway)
    with guest_service(mine, PORT), guest_service(other, PORT):
        assert await dial(mine, other.address) == "refused"
        assert await dial(other, mine.address) == "refused"
        for box in (mine, other):
            assert netns.dial(box.address) == f"seen as {GATEWAY}"
            assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
    keepers = [keeper_of(world, one.settings) for one in (world.networks, second)]
    for keeper in keepers:
        await keeper.start()
    assert [await lookup(box, "example.com") for box in (mine, other)] == [TRUTH, TRUTH]
    await keepers[1].stop()
    assert await lookup(mine, "example.com") == TRUTH
    await keepers[0].stop()
    await second.close()
    assert kernel_objects("tm", world.work) == []
    assert await dial(mine, PUBLIC) == f"seen as {UPLINK}"
    assert await world.networks.attached() == {1: body(mine.sandbox_id)}


@pytest.mark.requires("netns")
async def test_other_peoples_packets_are_none_of_our_business(world: World) -> None:
    nft = NftLibrary()
    with netns.host_listeners(PORT):
        assert netns.dial(PUBLIC) == f"seen as {UPLINK}"
        assert netns.dial(NEIGHBOUR) == f"seen as {UPLINK}"
        seen = await anyio.to_thread.run_sync(netns.inside, world.internet.path, partial(netns.dial, UPLINK))
    assert seen == f"seen as {ROUTER}"
    assert "policy drop" not in nft.run("list ruleset")


@pytest.mark.requires("netns")
@pytest.mark.parametrize("chain", ["DOCKER-USER", "FORWARD"])
async def test_a_firewall_that_drops_forwarding_is_found_and_opened_for_us_alone(world: World, chain: str) -> None:
    nft, settings = NftLibrary(), world.networks.settings
    box = await world.attach(1)
    assert host.forwarding_enabled()
    assert host.forward_policy_drops(nft, settings) == []
    jump = "jump DOCKER-USER\n" if chain == "DOCKER-USER" else ""
    nft.run("add table ip filter\nadd chain ip filter DOCKER-USER" if jump else "add table ip filter")
    nft.run(f"table ip filter {{\nchain FORWARD {{ type filter hook forward priority 0; policy drop; {jump}}}\n}}")
    try:
        assert await ask(box, PUBLIC) is None
        found = host.insert_accept_rule(nft, settings)
        assert [(one.name, one.rules_go_to) for one in found] == [("FORWARD", chain)]
        assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
        assert await dial(box, METADATA) == "refused"
        assert host.insert_accept_rule(nft, settings) == []
        assert host.remove_accept_rule(nft, settings) == 2
        assert await ask(box, PUBLIC) is None
    finally:
        nft.run("delete table ip filter")


@pytest.mark.requires("netns")
async def test_overlapping_routes_are_found(world: World) -> None:
    await world.attach(1)
    assert host.overlapping_routes(world.networks.settings) == []
    with Netlink() as netlink:
        index = socket.if_nametoindex("world")
        netlink.send(rtnetlink.address_add(index, "10.211.7.1", 24))
    found = host.overlapping_routes(world.networks.settings)
    assert {(str(one.network), one.interface) for one in found} == {("10.211.7.0/24", "world")}


@pytest.mark.requires("netns")
async def test_the_nft_program_stands_in_for_the_library(outside: Internet, tmp_path: Path) -> None:
    networks = NetnsNetworks(settings_of(tmp_path), NftProgram())
    await networks.open()
    box = await networks.attach(new_id(IdKind.SANDBOX), 1, NetworkMode.INTERNET)
    assert await dial(box, PUBLIC) == f"seen as {UPLINK}"
    await networks.block(box)
    assert await dial(box, PUBLIC) == "refused"
    await networks.detach(box.sandbox_id, 1)
    await networks.close()
    assert kernel_objects("tn", tmp_path) == []


@pytest.mark.requires("netns")
async def test_the_mtu_is_the_uplinks(tmp_path: Path) -> None:
    netns.private_network()
    with netns.internet(tmp_path, mtu=1400):
        networks = NetnsNetworks(settings_of(tmp_path), open_nft())
        await networks.open()
        box = await networks.attach(new_id(IdKind.SANDBOX), 1, NetworkMode.INTERNET)
        assert box.mtu == 1400
        with await inside(box, connect, PUBLIC) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1360
        await networks.close()


# The resolver's life.


def keeper_of(world: World, settings: NetworkSettings | None = None) -> ResolverKeeper:
    conf = world.resolv_conf
    conf.write_text(f"nameserver {ROUTER}\noptions timeout:1\n")
    return ResolverKeeper(ResolverSettings(settings or world.networks.settings, NOBODY, NOBODY, conf))


@contextlib.asynccontextmanager
async def resolver(world: World) -> AsyncIterator[ResolverKeeper]:
    keeper = keeper_of(world)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


@pytest.mark.requires("netns")
async def test_the_resolver_outlives_its_keeper_and_is_adopted(world: World) -> None:
    box = await world.attach(1)
    first = keeper_of(world)
    async with anyio.create_task_group() as group:
        group.start_soon(first.run)
        await until(lambda: first.pid is not None)
        assert await lookup(box, "example.com") == TRUTH
        group.cancel_scope.cancel()
    assert await lookup(box, "example.com") == TRUTH
    second = keeper_of(world)
    async with anyio.create_task_group() as group:
        group.start_soon(second.run)
        await until(lambda: second.pid is not None)
        assert second.pid == first.pid
        assert second.pid is not None
        os.kill(second.pid, 9)
        started = time.monotonic()
        answer = None
        while answer is None and time.monotonic() - started < 3:
            answer = await inside(box, netns.ask, GATEWAY, 53, netns.query("example.com"), 0.2)
        assert time.monotonic() - started < 1.5
        assert netns.address_in(answer) == TRUTH
        assert second.pid != first.pid
        group.cancel_scope.cancel()
    await second.stop()


@pytest.mark.requires("netns")
async def test_the_resolver_has_no_privileges_and_little_memory(world: World) -> None:
    box = await world.attach(1)
    async with resolver(world) as keeper:
        assert await lookup(box, "example.com") == TRUTH
        status = dict(line.split(":", 1) for line in Path(f"/proc/{keeper.pid}/status").read_text().splitlines())
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(NOBODY)}
        assert status["NoNewPrivs"].strip() == "1"
        for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
            assert int(status[key], 16) == 0, key
        assert int(status["VmRSS"].split()[0]) < 20 << 10
        assert set(os.listdir(f"/proc/{keeper.pid}/fd")) >= {"0", "1", "2"}


@pytest.mark.requires("netns")
async def test_the_resolver_survives_garbage_and_floods(world: World) -> None:
    box, calm = await world.attach(1), await world.attach(2)

    def garbage() -> None:
        seeds = [b"", b"\0" * 11, b"\0" * 12, b"\xff" * 40, os.urandom(500), netns.query("a")[:-1], os.urandom(4000)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for seed in seeds:
                sock.sendto(seed, (GATEWAY, 53))
        for seed in (b"\0", b"\xff\xff" + os.urandom(100), b"\0\x05abc", b"\0\0", b"\0\x0c" + bytes(12)):
            with contextlib.suppress(OSError), socket.create_connection((GATEWAY, 53), 1) as sock:
                sock.sendall(seed)

    def flood() -> tuple[int, int]:
        """(answered, refused) of 1000 queries at once."""
        codes = [0] * 16
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            for number in range(1000):
                sock.sendto(netns.query("example.com", identifier=number), (GATEWAY, 53))
                if number % 50 == 49:
                    time.sleep(0.005)
            with contextlib.suppress(TimeoutError):
                while True:
                    codes[sock.recv(65536)[3] & 15] += 1
        return codes[0], codes[5]

    async with resolver(world) as keeper:
        pid = keeper.pid
        for _ in range(5):
            await inside(box, garbage)
        answered, refused = await inside(box, flood)
        assert 0 < answered < 500
        for _ in range(10):  # how many of the others arrive at all is the kernel's matter
            if refused <= 100:
                refused += (await inside(box, flood))[1]
        assert refused > 100
        assert await lookup(calm, "example.com") == TRUTH
        assert keeper.pid == pid
        assert Path(f"/proc/{pid}").exists()


@pytest.mark.requires("netns")
async def test_the_resolver_follows_resolv_conf(world: World) -> None:
    box = await world.attach(1)
    async with resolver(world):
        assert await lookup(box, "example.com") == TRUTH
        world.resolv_conf.write_text(f"nameserver {PUBLIC}\n")
        await anyio.sleep(1.1)
        assert await lookup(box, "example.com") == netns.LIE
        world.resolv_conf.write_text(f"nameserver 192.0.2.9\nnameserver {ROUTER}\noptions timeout:1\n")
        await anyio.sleep(1.1)
        assert await lookup(box, "example.com") == TRUTH


def connect(address: str, port: int = PORT) -> socket.socket:
    return socket.create_connection((address, port), timeout=3)


def talk(sock: socket.socket) -> bytes:
    """Say something until it is answered; a reset may take one round trip."""
    for _ in range(50):
        sock.sendall(b"hello")
        sock.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            return sock.recv(5)
    raise AssertionError("neither an answer nor a reset")


def ping(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(1)
        sock.sendto(b"\x08\0\xf7\xfe\0\1\0\0", (address, 0))
        return sock.recv(100)[20] == 0


def send_raw(protocol: int, payload: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(b"\2\0\0\0\0\1" + b"\2\0\0\0\0\2" + protocol.to_bytes(2, "big") + payload)


def dropped(world: World, slot: int, rule: str) -> int:
    text = NftLibrary().run(f"list chain netdev {world.networks.settings.link_table} in{slot}")
    line = next(line for line in text.splitlines() if rule in line)
    return int(line.split("packets ")[1].split()[0])


def kernel_slots(prefix: str) -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith(f"{prefix}v")]
