"""A program inside a sandbox that can tell afterwards what happened to it: whether it went on, waited, or began anew."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from sandkeep.sdk import Client, Process, Sandbox
from sandkeep.sdk.results import Output
from support.instance import Instance, until

PORT = 9009

PROGRAM = f"""
import json, os, socketserver, sys, threading, time

ticks, last, gap = 0, time.monotonic(), 0.0
log = open("/home/user/witness.log", "a+")
random = open("/dev/urandom", "rb", buffering=0)

def tick():
    global ticks, last, gap
    while True:
        now = time.monotonic()
        ticks, last, gap = ticks + 1, now, max(gap, now - last)
        print("tick", ticks, flush=True)
        time.sleep(0.05)

class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        log.write("asked\\n"); log.flush(); log.seek(0)
        told = dict(pid=os.getpid(), ticks=ticks, gap=gap, time=time.time(), asked=len(log.readlines()),
                    inode=os.fstat(log.fileno()).st_ino, random=random.read(32).hex())
        self.request.sendall(json.dumps(told).encode())

socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(("127.0.0.1", {PORT}), Answer)
threading.Thread(target=tick, daemon=True).start()
server.serve_forever()
"""

_ASK = f"""
import socket, time
for _ in range(100):
    try:
        s = socket.create_connection(("127.0.0.1", {PORT}), 5)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
print(s.makefile().read())
"""


def start_witness(sandbox: Sandbox) -> Process:
    """Its pid is the witness's own: an argv is run without a shell."""
    process = sandbox.start_process(["python3", "-u", "-c", PROGRAM])
    ask(sandbox)
    return process


def ask(sandbox: Sandbox, **options: Any) -> dict[str, Any]:
    """What the witness knows: over TCP inside the sandbox."""
    done = sandbox.exec(["python3", "-c", _ASK], timeout=60, **options)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def read_ticks(process: Process, upto: int) -> list[int]:
    """The numbers it prints, until one reaches `upto`."""
    seen: list[int] = []
    rest = b""
    for event in process:
        assert isinstance(event, Output), f"output was lost: {event}"
        *lines, rest = (rest + event.data).split(b"\n")
        seen += [int(line.split()[1]) for line in lines]
        if seen and seen[-1] >= upto and not rest:
            return seen
    raise AssertionError(f"the witness ended: {process.result}")


def ticks_go_on(sandbox: Sandbox) -> None:
    before = ask(sandbox)["ticks"]
    until(lambda: ask(sandbox)["ticks"] > before)


def machine_pids(sandbox: Sandbox) -> set[int]:
    """Processes of the host in the control group of the sandbox's machine: all that runs of it."""
    body = sandbox.id.partition("_")[2]
    found = set()
    for folder, _, files in os.walk("/sys/fs/cgroup"):  # passes over groups of others that go meanwhile
        if body in folder and "cgroup.procs" in files:
            with contextlib.suppress(FileNotFoundError):
                found |= {int(pid) for pid in Path(folder, "cgroup.procs").read_text().split()}
    return found


def end_machine(sandbox: Sandbox) -> None:
    """From outside, as an operator or the kernel would."""
    pids = machine_pids(sandbox)
    assert pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def events_of(client: Client, sandbox_id: str) -> list[str]:
    return [event.kind for event in client.events() if event.subject == sandbox_id]


def settled_fsck(instance: Instance, timeout: float = 20.0) -> None:
    """No finding, once what a crash interrupted has been settled."""
    findings: list[dict[str, str]] = []
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        findings = instance.fsck()
        if not findings:
            return
    raise AssertionError(f"fsck: {findings}\n{instance.logs()}")
