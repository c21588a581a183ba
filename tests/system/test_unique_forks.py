"""No two forks draw the same random numbers, or are known by the same thing, however many there are and whichever way made."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from support.instance import Instance, until

KEYGEN = """#!/bin/sh
test "$1" = -A && head -c 32 /dev/urandom | od -An -tx1 > /etc/ssh/ssh_host_ed25519_key
"""
"""It takes the key from where the real one does, in less time."""
GENERATOR = """
import random, socketserver

seen, source = "", random.Random(0)

def draw():
    global seen, source
    now = open("/run/sandkeep/generation").read()
    if now != seen:
        seen, source = now, random.Random(now)
    return "%032x" % source.getrandbits(128)
"""
SERVE = f"""{GENERATOR}
class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(draw().encode())

draw()
socketserver.UnixStreamServer("/dev/shm/generator", Answer).serve_forever()
"""
LOOK = f"""{GENERATOR}
import json, os, socket

def follower():
    if not os.path.exists("/dev/shm/generator"):
        return draw()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect("/dev/shm/generator")
        return peer.recv(100).decode()

draws = [os.getrandom(16).hex() for _ in range(8)]
with open("/dev/urandom", "rb", buffering=0) as file:
    draws += [file.read(16).hex() for _ in range(8)]
draws += [follower() for _ in range(2)]
files = ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/run/sandkeep/generation", "/etc/hostname")
known = {{path: open(path).read() for path in files}}
known |= {{"hostname": socket.gethostname(), "id": os.environ["SANDKEEP_SANDBOX_ID"]}}
print(json.dumps({{"draws": draws, "known": known}}))
"""
Batches = list[tuple[str, str, int, int]]
"""Runtime, kind, how many at once, and how often."""


class Seen:
    """All that anybody drew, and whose each mark is."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._draws: set[str] = set()
        self._owners: dict[tuple[str, str], str] = {}

    def look_at(self, family: list[Sandbox]) -> None:
        with ThreadPoolExecutor(4) as threads:
            for one, told in zip(family, threads.map(look, family), strict=True):
                self._note(one, told)

    def _note(self, one: Sandbox, told: dict[str, Any]) -> None:
        assert len(told["draws"]) == 18
        again = self._draws.intersection(told["draws"])
        assert not again and len(set(told["draws"])) == 18, f"{one.id} draws what was drawn before"
        self._draws.update(told["draws"])
        record = json.loads((self._instance.root / f"data/node/sandboxes/{one.id}.json").read_text())
        marks = {**told["known"], "slot": str(record["slot"]), "token": record["token"]}
        for what, value in marks.items():
            # A slot gives the address, the link and its MAC; those of the deleted come round again after all others.
            assert value.strip(), (one.id, what)
            assert self._owners.setdefault((what, value), one.id) == one.id, f"{what} is another's"


def look(sandbox: Sandbox) -> dict[str, Any]:
    done = sandbox.exec(["python3", "-c", LOOK], user="root")
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def source_of(client: Client, runtime: str) -> Sandbox:
    sandbox = Sandbox.create(template="test", runtime=runtime, memory="128MiB", disk="512MiB", client=client)  # type: ignore[arg-type]
    keys = "mkdir -p /etc/ssh; cat > /usr/bin/ssh-keygen; chmod 755 /usr/bin/ssh-keygen; ssh-keygen -A"
    assert sandbox.exec(keys, user="root", stdin=KEYGEN).exit_code == 0
    sandbox.start_process(["python3", "-c", SERVE], user="root").detach()
    until(lambda: sandbox.exec("test -S /dev/shm/generator").exit_code == 0)
    return sandbox


def prove(client: Client, instance: Instance, batches: Batches) -> int:
    """How many forks there were. Each second time they come from one and the same snapshot, else from the source as it runs."""
    seen, count = Seen(instance), 0
    for runtime, kind, size, times in batches:
        source = source_of(client, runtime)
        kept = source.snapshot("kept", kind=kind)  # type: ignore[arg-type]
        seen.look_at([source])
        for turn in range(times):
            of = kept if turn % 2 == 0 else None
            forks = source.fork(size, snapshot=of, kind=kind, name=f"{runtime}-{kind}-{turn}")  # type: ignore[arg-type]
            seen.look_at([*forks, source])
            count += len(forks)
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(Sandbox.delete, forks))
            for one in source.snapshots.list():
                if one.id != kept.id:
                    source.snapshots.delete(one)
        source.delete()
    assert instance.fsck() == []
    return count


def test_no_two_of_ten_are_alike(client: Client, instance: Instance) -> None:
    assert prove(client, instance, [("gvisor", "full", 3, 2), ("runc", "disk", 2, 2)]) == 10


@pytest.mark.long
def test_no_two_of_a_thousand_are_alike(client: Client, instance: Instance) -> None:
    batches = [("gvisor", "full", 50, 12), ("gvisor", "disk", 50, 2), ("runc", "disk", 50, 6)]
    assert prove(client, instance, batches) == 1000
