"""The built agent as pid 1 of its own pid, mount and host name spaces, and a stub of the control plane that leads
E2B's public client to it. Nothing of the host's /etc, /run or /home is touched: the agent sees private copies."""

import http.server
import json
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "agent"
TOKEN = "token-of-the-agent-tests"

# $1 is a scratch folder, the rest is the agent's command line.
BOOT = """
set -e
scratch=$1; shift
cp -a /etc "$scratch/etc"
sed -i '/^user:/d; /:1000:/d' "$scratch/etc/passwd" "$scratch/etc/group"
echo 'user:x:1000:1000::/home/user:/bin/bash' >> "$scratch/etc/passwd"
echo 'user:x:1000:' >> "$scratch/etc/group"
mount --bind "$scratch/etc" /etc
mount -t tmpfs run /run
mount -t tmpfs home /home
mkdir -p /home/user && chown 1000:1000 /home/user
exec "$@"
"""


def _go() -> str | None:
    return os.environ.get("SANDKEEP_GO") or shutil.which("go")


@pytest.fixture(scope="session")
def agent_binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("SANDKEEP_AGENT")
    if given:
        return given
    go = _go()
    if not go:
        pytest.skip("no agent: set SANDKEEP_AGENT, or have go")
    out = tmp_path_factory.mktemp("agent") / "agent"
    build = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(out), "."]
    subprocess.run(build, cwd=SOURCE, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
    return str(out)


class Agent:
    """A running agent. `pid` is the host's number for it."""

    def __init__(self, binary: str, scratch: pathlib.Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._outer = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
            + ["sh", "-c", BOOT, "boot", str(scratch), binary, "--port", str(self.port)],
            env={"PATH": os.environ["PATH"], "SECRET_OF_THE_HOST": "1"},
        )
        self._await()
        children = pathlib.Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self.pid = int(children.read_text().split()[0])

    def _await(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if self.call("GET", "/health", token=None)[0] == 204:
                    return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("the agent does not answer")

    def call(
        self, method: str, path: str, body: object = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, bytes]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["X-Access-Token"] = token
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def json(self, method: str, path: str, body: object = None) -> dict:
        status, text = self.call(method, path, body, Accept="application/json", Content_Type="application/json")
        assert status == 200, (status, text)
        return json.loads(text)

    def exec(self, script: str, **more: object) -> dict:
        return self.json("POST", "/exec", {"cmd": "/bin/sh", "args": ["-c", script], **more})

    def resident(self) -> int:
        """Bytes of memory that the agent itself uses."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise RuntimeError("no VmRSS")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> None:
        self._outer.kill()
        self._outer.wait()


@pytest.fixture
def fresh_agent(agent_binary: str, tmp_path: pathlib.Path) -> Iterator[Agent]:
    """An agent that /init has not reached."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    agent = Agent(agent_binary, tmp_path)
    yield agent
    agent.stop()


@pytest.fixture(scope="module")
def agent(agent_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    agent = Agent(agent_binary, tmp_path_factory.mktemp("scratch"))
    body = {"accessToken": TOKEN, "envVars": {"FROM_INIT": "yes"}, "sandboxId": "sbxtest", "timestamp": time.time()}
    assert agent.call("POST", "/init", body, token=None)[0] == 204
    yield agent
    agent.stop()


class _ControlPlane(http.server.BaseHTTPRequestHandler):
    """Every sandbox is the one agent."""

    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: object = None) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        sandbox = {"sandboxID": "sbxtest", "templateID": "base", "clientID": "c", "envdVersion": "0.6.13"}
        self._answer(201, {**sandbox, "envdAccessToken": TOKEN})

    def do_DELETE(self) -> None:
        self._answer(204)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def sandbox(agent: Agent) -> Iterator[object]:
    """E2B's unmodified client on the agent."""
    e2b = pytest.importorskip("e2b")
    control = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _ControlPlane)
    threading.Thread(target=control.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_API_KEY", "e2b_" + "0" * 40)
        patch.setenv("E2B_API_URL", f"http://127.0.0.1:{control.server_port}")
        patch.setenv("E2B_SANDBOX_URL", agent.url)
        yield e2b.Sandbox.create()
    control.shutdown()
    control.server_close()
