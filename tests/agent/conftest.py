"""Agents to test, and a stub of the control plane that leads E2B's public client to one."""

import http.server
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from agent_process import TOKEN, Agent

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "agent"


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
