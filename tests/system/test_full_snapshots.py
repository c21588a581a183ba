"""Snapshots with memory and processes: kept beside a running sandbox, gone back to, and forked from (gVisor)."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict, PauseFailed, SandkeepError, Unsupported
from support.instance import Instance, until

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.01; done"
SERVER = """
import http.server, os
secret = os.urandom(16).hex()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (secret + " " + os.urandom(16).hex()).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
ASK = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8000\").read().decode())'"
KEYGEN = """#!/bin/sh
test "$1" = -A && head -c 32 /dev/urandom | od -An -tx1 > /etc/ssh/ssh_host_ed25519_key
"""
FOLLOWER = """
import random, time, pathlib
file = pathlib.Path("/run/sandkeep/generation")
seen, source = file.read_text(), random.Random(7)
while True:
    now = file.read_text()
    if now != seen:
        seen, source = now, random.Random(now)
    pathlib.Path("/dev/shm/draw.new").write_text(f"{seen.strip()} {source.getrandbits(64)}")
    pathlib.Path("/dev/shm/draw.new").rename("/dev/shm/draw")
    time.sleep(0.01)
"""


def box(client: Client, runtime: str = "gvisor", **options: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="192MiB", disk="512MiB", client=client, **options)  # type: ignore[arg-type]


def counting(sandbox: Sandbox) -> int:
    sandbox.start_process(["sh", "-c", COUNTER], user="root").detach()
    until(lambda: count(sandbox))
    return count(sandbox)


def count(sandbox: Sandbox) -> int:
    return int(sandbox.exec("cat /dev/shm/n 2>/dev/null || echo 0").stdout)


def said(sandbox: Sandbox, command: str) -> str:
    done = sandbox.exec(command, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def test_processes_go_on_from_the_moment_that_was_kept(client: Client, instance: Instance) -> None:
    sandbox = box(client, name="dev")
    counting(sandbox)
    said(sandbox, "echo then > /home/user/state")
    kept = sandbox.snapshot("then", kind="full")
    assert (kept.kind, kept.held > 0) == ("full", True)
    at = count(sandbox)
    until(lambda: count(sandbox) > at + 80)  # the source runs on, for longer than the way back takes a busy host
    later = count(sandbox)
    said(sandbox, "echo now > /home/user/state; pkill -f n.new || kill $(pgrep sh | tail -1) || true")
    sandbox.rollback("then")
    assert sandbox.phase == "running"
    assert said(sandbox, "cat /home/user/state") == "then"
    again = count(sandbox)
    assert again < later
    until(lambda: count(sandbox) > again)
    receipt = sandbox.receipt()
    assert receipt.event == "rollback"
    assert all(one.ok for one in receipt.checks)
    assert [one.name for one in receipt.checks] == [
        "disk",
        "memory",
        "clock",
        "random",
        "network",
        "limits",
        "address",
        "environment",
        "labels",
        "timers",
    ]
    before = sandbox.snapshots.list()[-1]
    assert (before.kind, before.parent) == ("full", kept.id), "the moment before has its memory, too"
    instance.kill("runner")
    instance.ensure_up()
    sandbox.rollback(before, keep_before=False)
    assert said(sandbox, "cat /home/user/state") == "now"
    sandbox.rollback("then", kind="disk", keep_before=False)
    assert said(sandbox, "cat /home/user/state; test -e /dev/shm/n || echo fresh") == "then\nfresh"
    sandbox.snapshots.delete("then")
    sandbox.rollback(before, keep_before=False)
    assert count(sandbox) >= later
    assert instance.fsck() == []


def test_of_a_paused_one(client: Client, instance: Instance) -> None:
    """It stays paused. On disk, snapshot and pause share one generation, and each outlives the other."""
    sandbox = box(client, persistence="full")
    counting(sandbox)
    sandbox.pause(hold="memory")
    sandbox.snapshot("held", kind="full")
    sandbox.refresh()
    assert (sandbox.phase, sandbox.view.hold) == ("paused", "memory")
    sandbox.resume()
    sandbox.pause()
    first, second = sandbox.snapshot("on-disk", kind="full"), sandbox.snapshot("again", kind="full")
    assert (first.held, second.held) == (0, 0)
    paused_at = count(sandbox)  # this wakes it, and its own generation goes
    sandbox.snapshots.delete("on-disk")
    sandbox.rollback("again", keep_before=False)
    assert count(sandbox) < paused_at + 1000
    sandbox.pause()
    sandbox.snapshot("last", kind="full")
    sandbox.snapshots.delete("last")
    sandbox.resume()  # from the generation that the snapshot shared
    sandbox.stop()
    sandbox.rollback("held", keep_before=False)
    assert (sandbox.phase, sandbox.view.hold) == ("paused", "disk"), "it did not run, and has memory"
    assert count(sandbox) > 0
    sandbox.stop()
    with pytest.raises(Conflict, match="no memory"):
        sandbox.snapshot(kind="full")
    assert instance.fsck() == []


def test_forks_go_on_as_others(client: Client, instance: Instance) -> None:
    sandbox = box(client, name="source", env={"WHO": "all"}, labels={"of": "mine"})
    setup = "mkdir -p /etc/ssh; cat > /usr/bin/ssh-keygen; chmod 755 /usr/bin/ssh-keygen; ssh-keygen -A"
    assert sandbox.exec(setup, user="root", stdin=KEYGEN).exit_code == 0
    hook = "#!/bin/sh\necho $SANDKEEP_EVENT $SANDKEEP_GENERATION >> /root/hooks\n"
    folder = "/etc/sandkeep/hooks/resume.d"
    said(sandbox, f"mkdir -p {folder}; printf %s {shlex.quote(hook)} > {folder}/10; chmod 755 {folder}/10")
    counting(sandbox)
    for program in (SERVER, FOLLOWER):
        sandbox.start_process(["python3", "-c", program], user="root").detach()
    until(lambda: sandbox.exec(ASK).exit_code == 0 and sandbox.exec("cat /dev/shm/draw").exit_code == 0)
    forks = sandbox.fork(3, name="try")
    family = [sandbox, *forks]
    assert [one.name for one in forks] == ["try-1", "try-2", "try-3"]
    for one in forks:
        at = count(one)
        until(lambda one=one, at=at: count(one) > at)  # type: ignore[misc]
    answers = [said(one, ASK).split() for one in family]
    assert len({secret for secret, _ in answers}) == 1, "the same program goes on"
    assert len({fresh for _, fresh in answers}) == len(family)
    draws = {said(one, "cat /dev/shm/draw") for one in family}
    assert len(draws) == len(family), "a generator that follows the file draws anew"
    for what in (
        "cat /etc/machine-id",
        "cat /etc/ssh/ssh_host_ed25519_key",
        "hostname",
        "echo $SANDKEEP_SANDBOX_ID",
        "cat /run/sandkeep/generation",
        "head -c 16 /dev/urandom | od -An -tx1",
    ):
        assert len({said(one, what) for one in family}) == len(family), what
    assert {one.receipt().event for one in forks} == {"fork"}
    for one in forks:
        assert said(one, "tail -1 /root/hooks") == f"fork {said(one, 'cat /run/sandkeep/generation')}"
        assert (said(one, "echo $WHO"), one.labels["of"], one.phase) == ("all", "mine", "running")
    now = [float(said(one, "date +%s.%N")) for one in family]
    assert max(now) - min(now) < 20
    records = [json.loads((instance.root / "data/node/sandboxes" / f"{one.id}.json").read_text()) for one in family]
    assert len({record["slot"] for record in records}) == len({record["token"] for record in records}) == len(family)
    sandbox.delete()
    instance.kill("runner")
    instance.ensure_up()
    forks[0].pause(hold="memory")
    assert all(count(one) for one in forks)
    assert instance.fsck() == []


def test_a_fork_whose_hook_fails_is_none(client: Client, instance: Instance) -> None:
    sandbox = box(client)
    folder = "/etc/sandkeep/hooks/resume.d"
    said(sandbox, f"mkdir -p {folder}; ln -s /bin/false {folder}/10-no")
    for kind in ("disk", "full"):
        with pytest.raises(SandkeepError, match="10-no"):
            sandbox.fork(2, kind=kind)  # type: ignore[arg-type]
    assert [one.id for one in Sandbox.list(client=client)] == [sandbox.id]
    assert instance.fsck() == []


def test_what_cannot_be_saved_is_named_and_runs_on(client: Client, instance: Instance) -> None:
    sandbox = box(client)
    counting(sandbox)
    said(sandbox, "exec 9> /home/user/gone; rm /home/user/gone; sleep 1000 > /dev/null 2>&1 & disown")
    with pytest.raises(PauseFailed, match="/home/user/gone"):
        sandbox.snapshot("never", kind="full")
    assert sandbox.snapshots.list() == []
    at = count(sandbox)
    until(lambda: count(sandbox) > at)
    sandbox.snapshot("disk-alone")
    assert instance.fsck() == []


def test_damaged_memory_is_never_restored(client: Client, instance: Instance) -> None:
    sandbox = box(client)
    counting(sandbox)
    kept = sandbox.snapshot("kept", kind="full")
    images = sorted(Path(instance.root).rglob("pages.img"), key=lambda path: path.stat().st_mtime)
    data = bytearray(images[-1].read_bytes())
    data[len(data) // 2] ^= 1
    images[-1].write_bytes(data)
    at = count(sandbox)
    for attempt in (lambda: sandbox.rollback("kept", keep_before=False), lambda: sandbox.fork(snapshot="kept")):
        with pytest.raises(SandkeepError, match="damaged"):
            attempt()
    until(lambda: count(sandbox) > at)  # it ran on
    sandbox.rollback("kept", kind="disk", keep_before=False)
    assert len(sandbox.fork(snapshot="kept", kind="disk")) == 1
    assert sandbox.snapshots.get("kept").id == kept.id
    assert instance.fsck() == []


def test_where_memory_cannot_be_saved_the_disk_is_forked(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc")
    with pytest.raises(Unsupported) as refused:
        sandbox.snapshot(kind="full")
    assert "--kind disk" in (refused.value.hint or "")
    assert sandbox.snapshots.list() == []
    assert len(sandbox.fork()) == 1
    with pytest.raises(Unsupported):
        sandbox.fork(kind="full")
    sandbox.snapshot("disk")
    with pytest.raises(Conflict, match="no memory"):
        sandbox.fork(snapshot="disk", kind="full")
    with pytest.raises(Conflict, match="no memory"):
        sandbox.rollback("disk", kind="full")
    assert instance.fsck() == []
