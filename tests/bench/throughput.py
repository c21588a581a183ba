"""A file of 100 MB in and out: by the API, by the same client straight to the agent, and as a copy on the host."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from bench.lifecycle import Bench
from bench.measure import BARE, OURS, alternating
from sandkeep.app.settings import derive
from sandkeep.sdk import Sandbox
from sandkeep.sdk._sync.transport import Transport
from sandkeep.sdk.concurrency import chunks
from sandkeep.sdk.config import Address
from support.instance import Instance

SIZE = 100_000_000
_OCTETS = {"Content-Type": "application/octet-stream"}
_REMOTE = "/home/user/bench"


def files(bench: Bench, instance: Instance) -> None:
    """The agent of one and the same sandbox, so that only the way differs."""
    local = instance.root / "data/pool/bench/local"
    local.write_bytes(os.urandom(SIZE))
    sandbox = bench.sandbox()
    with _agent_of(instance, sandbox) as (agent, token):
        query = {"path": _REMOTE, "username": "user"}

        def write() -> None:
            with _rate(bench, "write", OURS), open(local, "rb") as file:
                sandbox.files.write(_REMOTE, file)

        def write_bare() -> None:
            with _rate(bench, "write", BARE), open(local, "rb") as file:
                agent.open(
                    "POST", "/files", query=query, content=chunks(file), headers={**_OCTETS, **token}, stream=False
                )

        def read() -> None:
            with _rate(bench, "read", OURS):
                assert sum(map(len, sandbox.files.read_stream(_REMOTE))) == SIZE

        def read_bare() -> None:
            with _rate(bench, "read", BARE):
                answer = agent.open("GET", "/files", query=query, headers=token)
                assert sum(map(len, answer.iter_raw())) == SIZE
                answer.close()

        write()
        bench.results.series[("write", bench.runtime, OURS)].clear()
        rounds = max(3, bench.rounds // 2)
        alternating(rounds, write, write_bare)
        alternating(rounds, read, read_bare)
    for _ in range(rounds):
        with _rate(bench, "copy", OURS):
            _copy(local, local.with_name("copy"))
    sandbox.delete()
    local.with_name("copy").unlink()
    local.unlink()


@contextlib.contextmanager
def _rate(bench: Bench, key: str, side: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    bench.results.add(key, bench.runtime, side, SIZE / 1e6 / (time.perf_counter() - begun))


@contextlib.contextmanager
def _agent_of(instance: Instance, sandbox: Sandbox) -> Iterator[tuple[Transport, dict[str, str]]]:
    """The SDK's own client, at the agent's address; the token is in the node's record, which root alone reads."""
    record = json.loads((instance.root / f"data/node/sandboxes/{sandbox.id}.json").read_text())
    network = derive(instance.name)["address_range"].partition("/")[0].split(".")
    address = f"{network[0]}.{network[1]}.{int(network[2]) + record['slot'] // 256}.{record['slot'] % 256}"
    transport = Transport(Address(f"http://{address}:49983", "none"), timeout=60, retry_for=0, verify=False)
    transport._checked = True  # an agent tells no version
    try:
        yield transport, {"X-Access-Token": record["token"]}
    finally:
        transport.close()


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as one, open(target, "wb") as other:
        while data := one.read(1 << 20):
            other.write(data)
