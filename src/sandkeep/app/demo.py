"""`sandkeep demo`: the main job on real input, each step with its time. Needs no internet."""

import base64
import hashlib
import io
import itertools
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sandkeep.app.settings import DEFAULT
from sandkeep.domain.errors import Internal
from sandkeep.domain.quantities import MIB
from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import AlreadyExists, Busy

Say = Callable[[str], None]

NAME = "demo"
_COUNTER = """\
import os, time
import sandkeep_greeting
count = 0
while True:
    count += 1
    with open("/home/user/count.new", "w") as file:
        file.write(f"{os.getpid()} {count}")
    os.replace("/home/user/count.new", "/home/user/count")
    time.sleep(0.05)
"""


def wheel() -> tuple[str, bytes]:
    """A tiny package as a wheel: its file name and content."""
    stem, info = "sandkeep_greeting", "sandkeep_greeting-1.0.dist-info"
    files = {
        f"{stem}.py": b'def greet():\n    return "hello from a package that survived"\n',
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: sandkeep-greeting\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: sandkeep\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return "sandkeep_greeting-1.0-py3-none-any.whl", packed.getvalue()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


class Demo:
    def __init__(self, client: Client, say: Say, instance: str) -> None:
        self._client = client
        self._say = say
        self._command = "sandkeep" if instance == DEFAULT else f"sandkeep --instance {instance}"

    @contextmanager
    def _step(self, what: str) -> Iterator[Callable[[str], None]]:
        """Times a step; the body may add what it found."""
        found: list[str] = []
        begun = time.perf_counter()
        yield found.append
        self._say(f"  {(time.perf_counter() - begun) * 1000:7.0f} ms  {what}{': ' + ', '.join(found) if found else ''}")

    def run(self) -> str:
        """Returns the name of the sandbox `demo`, which is left for the user. If there was one, it is not touched: another
        is shown, and deleted at the end. Raises Internal when something did not survive."""
        self._say("A sandbox that keeps its files, packages, processes and memory:")
        with self._step("create a gVisor sandbox, persistence=full"):
            sandbox = self._create()
        if sandbox.name == NAME:
            self._show(sandbox)
        else:
            try:
                self._show(sandbox)
            finally:
                sandbox.delete()
                self._say(f"              {sandbox.name} is deleted: {NAME} was there before, and was not touched")
        self._say("")
        self._say(f"Go on with {NAME}:")
        for line in (
            f"{self._command} exec {NAME} -- cat /home/user/count",
            f"{self._command} shell {NAME}",
            f"{self._command} pause {NAME}      # exec and shell wake it again",
            f"{self._command} delete {NAME}",
            f"{self._command} create --name mine && {self._command} exec mine -- uname -a",
        ):
            self._say(f"  {line}")
        return NAME

    def _create(self) -> Sandbox:
        """Under the first free name of demo, demo-2, ... The label makes it unlike every other one, so that a create
        never hands out what is there."""
        mark = {"sandkeep.demo": secrets.token_hex(8)}
        for number in itertools.count(1):
            name = NAME if number == 1 else f"{NAME}-{number}"
            try:
                return Sandbox.create(
                    name=name,
                    persistence="full",
                    runtime="gvisor",
                    memory="512MiB",
                    labels=mark,
                    client=self._client,
                )
            except (AlreadyExists, Busy):
                continue
        raise AssertionError("numbers do not end")

    def _show(self, sandbox: Sandbox) -> None:
        with self._step("clone a git repository") as found:
            _run(sandbox, _MAKE_REPOSITORY)
            _run(sandbox, "git clone -q /home/user/origin /home/user/work")
            found(_run(sandbox, "git -C /home/user/work log --oneline"))
        with self._step("install a Python package into a venv") as found:
            name, data = wheel()
            sandbox.files.write(f"/home/user/{name}", data)
            _run(
                sandbox,
                f"python3 -m venv /home/user/venv && /home/user/venv/bin/pip -q install --no-index /home/user/{name}",
            )
            found(_greet(sandbox))
        with self._step("start a background counter") as found:
            sandbox.files.write("/home/user/counter.py", _COUNTER)
            process = sandbox.start_process(["/home/user/venv/bin/python", "/home/user/counter.py"])
            process.detach()
            before = _count(sandbox, at_least=20)
            found(f"pid {before[0]} has counted to {before[1]}")
        used = sandbox.stats().memory or 0
        with self._step("pause: memory, processes and disk as one generation"):
            sandbox.pause()
        time_away = time.monotonic()
        if sandbox.stats().memory is not None:
            raise Internal("the machine still uses memory of the host")
        self._say(f"              its {used // MIB} MiB of memory left the host")
        with self._step("resume"):
            sandbox.resume()
        with self._step("look at what survived") as found:
            after = _count(sandbox, at_least=before[1] + 1)
            if after[0] != before[0] or after[1] <= before[1]:
                raise Internal(f"the counter did not go on: before {before}, after {after}")
            found(f"pid {after[0]} went on from {before[1]} to {after[1]}")
            found(_greet(sandbox))
            found(f"repository at {_run(sandbox, 'git -C /home/user/work rev-parse --short HEAD')}")
        self._say(f"              it was away for {time.monotonic() - time_away:.1f} s in all")


_MAKE_REPOSITORY = """
set -e
rm -rf /home/user/origin && git init -q /home/user/origin && cd /home/user/origin
git config user.email demo@sandkeep.invalid && git config user.name Demo
echo 'kept' > README && git add README && git commit -qm 'first commit'
"""


def _run(sandbox: Sandbox, line: str) -> str:
    done = sandbox.exec(line, timeout=120)
    if done.exit_code:
        raise Internal(f"{line.strip().splitlines()[0]!r} ended with {done.exit_code}: {done.stderr.strip()[-400:]}")
    return str(done.stdout).strip()


def _greet(sandbox: Sandbox) -> str:
    return _run(sandbox, "/home/user/venv/bin/python -c 'import sandkeep_greeting; print(sandkeep_greeting.greet())'")


def _count(sandbox: Sandbox, at_least: int) -> tuple[int, int]:
    """(pid, count) once it has counted that far; 20 s at most."""
    line = (
        f"for i in $(seq 400); do read pid n < /home/user/count 2>/dev/null; "
        f'[ "${{n:-0}}" -ge {at_least} ] && break; sleep 0.05; done; echo $pid $n'
    )
    pid, count = _run(sandbox, line).split()
    return int(pid), int(count)
