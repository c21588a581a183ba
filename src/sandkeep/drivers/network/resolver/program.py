"""The resolver as a program: takes its sockets as stdin (UDP) and stdout (TCP), drops every privilege, then serves."""

import argparse
import asyncio
import os
import socket
from collections.abc import Sequence

from sandkeep.drivers.network.resolver.server import Limits, Server
from sandkeep.drivers.network.resolver.upstream import Upstream
from sandkeep.lib import privileges

UDP_FD, TCP_FD = 0, 1


def drop_privileges(user: int, group: int) -> None:
    """For good: another user, no groups, no capabilities, nothing to gain by executing, no core."""
    privileges.become(user, group)
    privileges.never_gain()
    privileges.leave_no_trace()
    if os.geteuid() == 0:
        raise PermissionError("the resolver does not serve as root")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sandkeep-resolver", description=__doc__)
    parser.add_argument("--instance", default="", help="only names the process")
    parser.add_argument("--clients", required=True, help="the guests' address range; nobody else is answered")
    parser.add_argument("--resolv-conf", default="/etc/resolv.conf", help="names the servers to ask")
    parser.add_argument("--user", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--rate", type=float, default=Limits.rate, help="queries per second and guest")
    parser.add_argument("--burst", type=float, default=Limits.burst)
    return parser.parse_args(argv)


def parse_clients(text: str) -> tuple[int, int]:
    """'10.210.0.0/16' -> network and mask as integers."""
    address, _, prefix = text.partition("/")
    mask = (0xFFFFFFFF << (32 - int(prefix))) & 0xFFFFFFFF
    return int.from_bytes(socket.inet_aton(address), "big") & mask, mask


async def _serve(server: Server, udp: socket.socket, tcp: socket.socket) -> None:
    server.serve_udp(udp)
    await server.serve_tcp(tcp)
    await asyncio.get_running_loop().create_future()


def main(argv: Sequence[str]) -> int:
    options = parse_arguments(argv)
    udp, tcp = socket.socket(fileno=UDP_FD), socket.socket(fileno=TCP_FD)
    for sock in (udp, tcp):
        sock.setblocking(False)
    socket.getaddrinfo("127.0.0.1", 53, flags=socket.AI_NUMERICHOST)  # loads what it needs while it may
    drop_privileges(options.user, options.group)
    upstream = Upstream(options.resolv_conf, own=udp.getsockname()[0])
    server = Server(upstream, parse_clients(options.clients), Limits(rate=options.rate, burst=options.burst))
    asyncio.run(_serve(server, udp, tcp))
    return 0
