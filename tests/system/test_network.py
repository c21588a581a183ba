"""What a sandbox reaches and what it does not, against an Internet of the test's own, from the first packet on."""

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from sandkeep.app.settings import derive
from sandkeep.drivers.network.layout import NetworkSettings
from sandkeep.drivers.network.nftables import open_nft
from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Unavailable
from support import netns
from support.instance import Instance, client_of, until
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

PROBE = """
import json, socket, struct, sys, time
def dial(address, port, family=socket.AF_INET):
    began = time.monotonic()
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(3)
            sock.connect((address, port))
            said = "seen as " + sock.recv(100).decode().strip()
    except TimeoutError:
        said = "silence"
    except ConnectionRefusedError:
        said = "refused"
    except OSError as error:
        said = "unreachable"
    return [said, time.monotonic() - began]
def ask(address, port, data=b"hello"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        try:
            sock.connect((address, port)); sock.send(data)
            return sock.recv(65536).hex()
        except OSError:
            return None
def name(server):
    query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\\7example\\3com\\0" + struct.pack(">2H", 1, 1)
    answer = ask(server, 53, query)
    return socket.inet_ntoa(bytes.fromhex(answer)[-4:]) if answer else None
def flood(count):
    codes = {}
    query = struct.pack(">5H", 0x100, 1, 0, 0, 0) + b"\\7example\\3com\\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        def drain(patience):  # between the questions: a receive buffer holds 256 answers, the rest would be lost
            sock.settimeout(patience)
            try:
                while True:
                    code = sock.recv(65536)[3] & 15
                    codes[code] = codes.get(code, 0) + 1
            except TimeoutError:
                pass
        for number in range(count):
            sock.sendto(struct.pack(">H", number) + query, ("10.0.0.1", 53))
            if number % 50 == 49: drain(0.005)
        drain(0.5)
    return codes
print(json.dumps(eval(sys.argv[1])))
"""
HAMMER = """
import os, socket, time
attempts = through = 0
while True:
    attempts += 1
    sock = socket.socket()
    sock.settimeout(0.2)
    try:
        sock.connect(("169.254.169.254", 80)); through += 1
    except OSError:
        pass
    sock.close()
    with open("/tmp/hammer.new", "w") as file:
        file.write(f"{attempts} {through}")
    os.rename("/tmp/hammer.new", "/tmp/hammer")
    time.sleep(0.002)
"""


def inside(sandbox: Sandbox, expression: str) -> Any:
    done = sandbox.exec(["python3", "-c", PROBE, expression], timeout=60)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


class Hits:
    """Connections that came to the metadata service."""

    def __init__(self, outside: Internet) -> None:
        servers = netns.inside(outside.path, partial(netns.listeners, METADATA, 80))
        outside.servers += servers
        self.count = 0
        before = servers[0].verify_request

        def note(request: Any, client: Any) -> bool:
            self.count += 1
            return before(request, client)

        servers[0].verify_request = note  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def outside() -> Iterator[Internet]:
    netns.private_network()
    with tempfile.TemporaryDirectory() as work, netns.internet(Path(work)) as made:
        yield made


@pytest.fixture(scope="module")
def networked(outside: Internet) -> Iterator[Instance]:
    """An instance that asks the stand-in's name server, and passes a proxy and a certificate authority on."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        folder = Path(work)
        folder.chmod(0o755)
        (folder / "resolv.conf").write_text(f"nameserver {ROUTER}\noptions timeout:1\n")
        (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nc2FuZGtlZXAgdGVzdA==\n-----END CERTIFICATE-----\n")
        settings = {
            "SANDKEEP_RESOLV_CONF": str(folder / "resolv.conf"),
            "SANDKEEP_EXTRA_CA": str(folder / "ca.pem"),
            "SANDKEEP_HTTP_PROXY": "http://proxy.test:3128",
            "SANDKEEP_NO_PROXY": "localhost",
        }
        with Instance.made("test", **settings) as made:
            yield made


@pytest.fixture
def client(networked: Instance) -> Iterator[Client]:
    networked.ensure_up()
    with client_of(networked) as made:
        yield made
        networked.ensure_up()
        networked.clean(made)


def box(client: Client, runtime: str, **spec: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="128MiB", client=client, **spec)


def address_of(instance: Instance, sandbox: Sandbox) -> str:
    """On the host's side."""
    record = json.loads((instance.root / f"data/node/sandboxes/{sandbox.id}.json").read_text())
    derived = derive(instance.name)
    settings = NetworkSettings(derived["prefix"], instance.root / "run", IPv4Network(derived["address_range"]), 1)
    return settings.address(record["slot"])


def test_the_public_is_reached_and_the_private_refused(client: Client, networked: Instance, runtime: str) -> None:
    one, two = box(client, runtime), box(client, "runc")
    server = two.start_process(["python3", "-m", "http.server", str(PORT), "--bind", "0.0.0.0"])
    until(lambda: netns.dial(address_of(networked, two), PORT, 0.2) not in ("refused", "unreachable"))
    assert inside(one, f"dial({PUBLIC!r}, {PORT})")[0] == f"seen as {UPLINK}"
    assert inside(one, f"dial({OTHER!r}, {PORT})")[0] == f"seen as {UPLINK}"
    assert bytes.fromhex(inside(one, f"ask({PUBLIC!r}, {PORT})")).decode() == UPLINK
    own, other = address_of(networked, one), address_of(networked, two)
    forbidden = [METADATA, AZURE, NEIGHBOUR, CARRIER_GRADE, UPLINK, "10.0.0.1", own, other, "192.168.1.1", "172.16.0.1"]
    with netns.host_listeners(PORT):
        found = inside(one, f"{{a: dial(a, {PORT}) + [ask(a, {PORT})] for a in {forbidden}}}")
    assert {address: said for address, (said, _, _) in found.items()} == dict.fromkeys(forbidden, "refused")
    assert max(seconds for _, seconds, _ in found.values()) < 1
    assert {answer for _, _, answer in found.values()} == {None}
    server.kill()
    server.detach()


def test_ipv6_goes_nowhere(client: Client, runtime: str) -> None:
    one = box(client, runtime)
    found = inside(one, "[dial(a, 80, socket.AF_INET6) for a in ('2001:db8::1', 'fe80::1%eth0', 'fd00:ec2::254')]")
    assert [said in ("refused", "unreachable") and seconds < 1 for said, seconds in found] == [True] * 3, found


def test_localhost_answers_over_ipv6(client: Client, runtime: str) -> None:
    """Some programs take ::1, which /etc/hosts lists, before 127.0.0.1."""
    one = box(client, runtime)
    echo = "s = socket.create_server(('::1', 0), family=socket.AF_INET6); socket.create_connection(s.getsockname()[:2])"
    assert one.exec(["python3", "-c", f"import socket; {echo}; print(s.accept()[1][0])"]).stdout == "::1\n"


def test_names_come_from_the_gateway_alone(client: Client, outside: Internet, runtime: str) -> None:
    one, lies = box(client, runtime), outside.liar.queries
    assert one.exec("python3 -c 'import socket; print(socket.gethostbyname(\"example.com\"))'").stdout == f"{TRUTH}\n"
    found = inside(one, f"{{s: [name(s), dial(s, 53)[0]] for s in ('10.0.0.1', {PUBLIC!r}, {OTHER!r}, {ROUTER!r})}}")
    assert found.pop("10.0.0.1")[0] == TRUTH
    assert list(found.values()) == [[None, "refused"]] * 3
    assert outside.liar.queries == lies


def test_one_sandbox_cannot_use_up_the_resolver(client: Client) -> None:
    noisy, calm = box(client, "runc"), box(client, "runc")
    codes = inside(noisy, "flood(1500)")
    assert codes.get("5", 0) > 100, codes
    assert inside(calm, "name('10.0.0.1')") == TRUTH


def test_network_none_reaches_nothing(client: Client, runtime: str) -> None:
    one = box(client, runtime, network="none")
    found = inside(one, f"{{a: dial(a, {PORT})[0] for a in ({PUBLIC!r}, {METADATA!r}, '10.0.0.1')}}")
    assert set(found.values()) <= {"refused", "unreachable"}
    assert inside(one, "name('10.0.0.1')") is None
    one.stop()
    one.start()
    assert inside(one, f"dial({PUBLIC!r}, {PORT})")[0] in ("refused", "unreachable")


def _answers(client: Client) -> bool:
    try:
        return bool(client.node())
    except Unavailable:
        return False


def test_no_packet_slips_through_pauses_and_restarts(client: Client, networked: Instance, outside: Internet) -> None:
    """A process that never stops trying, through everything that takes rules away and puts them back."""
    hits = Hits(outside)
    full = box(client, "gvisor", persistence="full")
    native = box(client, "runc")

    def tried(one: Sandbox) -> int:
        return int(one.exec("cat /tmp/hammer").stdout.split()[0])

    for one in (full, native):
        one.start_process(["python3", "-c", HAMMER]).detach()
        until(lambda one=one: one.exec("test -s /tmp/hammer").exit_code == 0)
    for _ in range(2):
        full.pause()
        full.resume()
        native.pause(hold="memory")
        native.resume()
        networked.kill("runner")
        networked.ensure_up()
        until(lambda: _answers(client))
        before = {one.id: tried(one) for one in (full, native)}
        until(lambda: all(tried(one) > before[one.id] + 5 for one in (full, native)), 20)
    for one in (full, native):
        assert one.exec("cat /tmp/hammer").stdout.split()[1] == "0"
        assert inside(one, f"dial({PUBLIC!r}, {PORT})")[0] == f"seen as {UPLINK}"
    assert hits.count == 0
    netns.dial(METADATA, 80)
    assert hits.count == 1, "the stand-in counts"


WAITING = """
import socket
try:
    socket.socket().connect(("%s", 80))
except OSError as error:
    open("/tmp/ended", "w").write(str(error))
"""


def test_a_connection_that_nobody_answers_does_not_hold_the_pause(client: Client, networked: Instance) -> None:
    one = box(client, "gvisor", persistence="full")
    one.start_process(["python3", "-c", WAITING % netns.SILENT]).detach()
    until(lambda: one.exec("grep -c ' 02 ' /proc/net/tcp").stdout == "1\n")
    one.pause()
    one.resume()
    until(lambda: "refused" in one.exec("cat /tmp/ended").stdout, 5)
    one.start_process(["python3", "-c", WAITING % netns.SILENT]).detach()
    until(lambda: one.exec("grep -c ' 02 ' /proc/net/tcp").stdout == "1\n")
    one.pause()


def test_flushed_rules_come_back(client: Client, networked: Instance) -> None:
    one = box(client, "runc")
    assert inside(one, f"dial({PUBLIC!r}, {PORT})")[0] == f"seen as {UPLINK}"
    before = open_nft().run("list ruleset")
    open_nft().run("flush ruleset")
    assert open_nft().run("list ruleset") == ""
    until(lambda: len(open_nft().run("list ruleset").splitlines()) == len(before.splitlines()), 10)
    assert inside(one, f"dial({PUBLIC!r}, {PORT})")[0] == f"seen as {UPLINK}"
    assert inside(one, f"dial({METADATA!r}, {PORT})")[0] == "refused"
    two = box(client, "gvisor")
    assert inside(two, f"dial({PUBLIC!r}, {PORT})")[0] == f"seen as {UPLINK}"


def test_proxy_and_certificates_reach_the_guest(client: Client, runtime: str) -> None:
    one = box(client, runtime)
    said = one.exec("echo $http_proxy $HTTPS_PROXY $no_proxy").stdout.split()
    assert said == ["http://proxy.test:3128", "http://proxy.test:3128", "localhost"]
    assert "c2FuZGtlZXAgdGVzdA==" in one.exec("cat /usr/local/share/ca-certificates/sandkeep-extra.crt").stdout
    one.stop()
    one.start()
    assert one.exec("echo $http_proxy").stdout == "http://proxy.test:3128\n"
