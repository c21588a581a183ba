"""Bad input of every kind gets one clear error, or the right outcome; nothing is lost or leaked."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from urllib.parse import urlparse

import httpx2
import pytest

from sandkeep.edge.api.app import api_app
from sandkeep.edge.api.routes.bytes import byte_routes
from sandkeep.edge.api.services import Services
from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NoCapacity, SandkeepError, Unauthenticated
from support.census import census
from support.instance import Instance, until
from support.witness import machine_pids, settled_fsck

UNKNOWN = "sbx_aaaaaaaaaaaaaaaaaaaa"
SMALL: dict[str, Any] = {"template": "test", "runtime": "runc", "memory": "256MiB"}


@pytest.fixture
def http(client: Client, instance: Instance) -> Iterator[httpx2.Client]:
    """The bare interface, with the key."""
    saved = instance.config
    with httpx2.Client(
        base_url=saved["url"], headers={"Authorization": f"Bearer {saved['key']}"}, timeout=60, trust_env=False
    ) as made:
        yield made


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The answer's problem, of the one shape that all have."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["status"], found["code"]) == (status, code), found
    assert found["detail"]
    assert found["type"] == f"urn:sandkeep:error:{code}"
    return dict(found)


def routes() -> list[tuple[str, str]]:
    """Every method and path of the interface, from the application itself."""
    document = api_app(None, "test").openapi()["paths"]
    found = [(method.upper(), path) for path, item in document.items() for method in item]
    for route in byte_routes(cast(Services, None)):
        found += [(method, route.path) for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


def filled(path: str, ref: str) -> str:
    values = {"ref": ref, "key_id": "key_none", "snapshot": "none", "service": "process.Process", "method": "List"}
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return path


BODIES = {
    "exec": {"command": "true"},
    "compose": {},
    "agent": {},
    "rollback": {"snapshot": "none"},
    "promote": {"into": "none"},
    "restore": {"snapshot": "none", "path": "/x"},
}


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer nonsense", "Bearer sk_" + "a" * 40, "Basic dXNlcjpwYXNz"])
def test_every_route_wants_a_key(client: Client, http: httpx2.Client, key: str | None) -> None:
    """Before it looks at what was sent."""
    sandbox_routes = routes()
    assert len(sandbox_routes) > 30
    http.headers.pop("Authorization")
    headers = {} if key is None else {"Authorization": key}
    for method, path in [*sandbox_routes, ("GET", "/metrics")]:
        answer = http.request(method, filled(path, UNKNOWN), headers=headers, params={"phase": "running"})
        found = problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert found["hint"]
    broken = http.post("/v1/sandboxes", content=b'{"na', headers={**headers, "Content-Type": "application/json"})
    problem(broken, 401, "unauthenticated")
    for path in ("/healthz", "/readyz"):
        assert http.get(path, headers=headers).status_code == 200


def test_a_revoked_key_opens_nothing(client: Client, instance: Instance) -> None:
    made = client.keys.create("soon-gone")
    with Client(instance.config["url"], made.secret) as other:
        assert list(Sandbox.list(client=other)) == []
        client.keys.revoke(made.id)
        with pytest.raises(Unauthenticated):
            list(Sandbox.list(client=other))


@pytest.mark.parametrize("ref", [UNKNOWN, "no-such-name", "a" * 300, "SBX_X", "x.y", "%00", "%2e%2e%2fx", "a%2Fb", "ü"])
def test_unknown_things_are_not_found(http: httpx2.Client, ref: str) -> None:
    for method, path in routes():
        if "{ref}" not in path:
            continue
        body = next((body for part, body in BODIES.items() if f"/{part}" in path), None)
        with http.stream(
            method,
            filled(path, ref),
            params={"phase": "running", "path": "/x"},
            json=body if method == "POST" else None,
        ) as answer:
            answer.read()
        if answer.status_code == 400:  # a wrong body was seen first
            assert method in ("PATCH", "PUT"), answer.text
            continue
        problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".", "", "-a", "a-", "a--b", "A", "a" * 41, "a b", "ä", "a\x00b", UNKNOWN]
)
def test_names_that_are_none(http: httpx2.Client, name: str) -> None:
    found = problem(http.post("/v1/sandboxes", json={**SMALL, "name": name}), 400, "invalid_argument")
    assert found["field"] == "name"


BAD_FIELDS: list[tuple[str, Any]] = [
    *[
        ("memory", value)
        for value in (-1, 0, 1, "1B", "99999TiB", "1e9", "lots", 1 << 70, None, [], True, "-1GiB", 1.5)
    ],
    *[("disk", value) for value in (-1, 0, "1KiB", "65TiB", "x" * 5000, {})],
    *[("cpus", value) for value in (-1, 0, 0.01, 257, "two", None)],
    *[("pids", value) for value in (-1, 0, 1, 1 << 40, 1.5, "many")],
    *[("ttl", value) for value in (-1, 0, 0.5, "soon", "1y", 1e300)],
    *[("grace", value) for value in (5, -1)],
    *[("runtime", value) for value in ("docker", "", None, 7)],
    *[("persistence", value) for value in ("forever", None)],
    *[("commit", value) for value in ("always", "manual")],
    *[("source", value) for value in ("dev", "@", "dev@", 7)],
    *[("network", value) for value in ("host", None)],
    *[("on_expiry", value) for value in ("explode", "stop")],
    *[("env", value) for value in ({"A=B": "x"}, {"": "x"}, {"A": "\0"}, {"A": 1}, [], {"A": "x" * 70000})],
    *[("labels", value) for value in ({"": "x"}, {"a b": "x"}, {"a": "x\ny"}, {"a": "x" * 2000}, "a=b")],
    ("labels", {f"l{n}": "x" for n in range(65)}),
    ("colour", "green"),
]


def test_fields_that_no_host_could_satisfy(http: httpx2.Client) -> None:
    for field, value in BAD_FIELDS:
        answer = http.post("/v1/sandboxes", json={**SMALL, field: value})
        assert answer.status_code == 400, f"{field}={value!r:.60}: {answer.status_code} {answer.text}"
        found = answer.json()
        assert found["code"] in ("invalid_argument", "unsupported")
        assert field in found.get("field", ""), f"{field}={value!r:.60}: {found}"
    found = problem(http.post("/v1/sandboxes", json={**SMALL, "template": "none-such"}), 404, "not_found")
    assert found["field"] == "template"
    assert http.get("/v1/sandboxes").json()["items"] == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":' * 5000, b'{"cpus": NaN}', b'{"cpus": 1e999}']
)
def test_bodies_that_are_no_requests(http: httpx2.Client, body: bytes) -> None:
    for path in ("/v1/sandboxes", "/v1/templates", "/v1/keys", f"/v1/sandboxes/{UNKNOWN}/exec"):
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
        found = problem(answer, 400, "invalid_argument")
        assert found.get("field") != "0" and "docs/" not in (found["hint"] or "")


def test_huge_bodies_are_refused_as_they_come(http: httpx2.Client, instance: Instance) -> None:
    def blocks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 20)

    for path in ("/v1/sandboxes", f"/v1/sandboxes/{UNKNOWN}/exec", f"/v1/sandboxes/{UNKNOWN}/pause"):
        problem(http.post(path, content=b"{" + b" " * (17 << 20)), 413, "too_large")
        try:
            answer = http.post(path, content=blocks())
        except httpx2.TransportError:
            continue  # it was cut off while it still sent
        problem(answer, 413, "too_large")
    server = instance.pid("server")
    with open(f"/proc/{server}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident < 300_000, "the server kept what it refused"


def test_queries_that_are_none(http: httpx2.Client) -> None:
    for query in ("limit=0", "limit=201", "limit=x", "cursor=!!!", "cursor=AAAA", "phase=happy", "label=x", "label==x"):
        problem(http.get(f"/v1/sandboxes?{query}"), 400, "invalid_argument")
    for query in ("after=-1", "after=x", "limit=0", "limit=1001"):
        problem(http.get(f"/v1/events?{query}"), 400, "invalid_argument")
    problem(http.get("/v1/nothing"), 404, "not_found")
    assert http.put("/v1/sandboxes").status_code == 405


def test_commands_that_are_none(http: httpx2.Client) -> None:
    sandbox = http.post("/v1/sandboxes", json=SMALL).json()["id"]
    bad: list[dict[str, Any]] = [
        {"command": []},
        {"command": [""]},
        {"command": ["true", 1]},
        {"command": "true\0"},
        {"command": "true", "timeout": -1},
        {"command": "true", "timeout": 0},
        {"command": "true", "timeout": "soon"},
        {"command": "true", "cwd": "/none/such"},
        {"command": "true", "user": "nobody-here"},
        {"command": "true", "user": "../root"},
        {"command": "true", "env": {"A=B": "x"}},
        {"command": "true", "stdin": "not base64!", "stdin_encoding": "base64"},
        {"command": ["/none/such"]},
    ]
    for body in bad:
        answer = http.post(f"/v1/sandboxes/{sandbox}/exec", json=body)
        assert answer.status_code == 400, f"{body}: {answer.status_code} {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json"
        if "/none/such" in str(body) or body.get("user") == "nobody-here":
            assert answer.json()["hint"], body
    assert http.post(f"/v1/sandboxes/{sandbox}/exec", json={"command": "exit 7"}).json()["exit_code"] == 7


def test_the_command_line_says_what_is_wrong(client: Client, instance: Instance) -> None:
    Sandbox.create(template="test", name="still", runtime="runc", memory="128MiB", client=client).stop()
    for arguments, code, said in (
        (["show", "no-such"], 3, "no-such"),
        (["create", "--template", "test", "--name", "../x"], 2, "../x"),
        (["create", "--template", "test", "--memory", "-5"], 2, "memory"),
        (["create", "--template", "none-such"], 3, "none-such"),
        (["create", "--template", "test", "--runtime", "docker"], 2, "runtime"),
        (["exec", "a/b", "--", "true"], 125, "a/b"),
        (["delete", ".."], 3, ".."),
        (["exec", "still", "--no-resume", "--", "true"], 125, "sandkeep start still, or leave out --no-resume"),
    ):
        done = instance.run(*arguments, check=False)
        assert (done.returncode, done.stdout) == (code, ""), f"{arguments}: {done.returncode} {done.stderr}"
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_an_idempotency_key_makes_one_sandbox(http: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "tests-once"}

    def create(**more: Any) -> httpx2.Response:
        return http.post("/v1/sandboxes", json={**SMALL, **more}, headers=headers)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: create(), range(10)))
    assert {answer.status_code for answer in answers} == {200, 201}, [a.text for a in answers]
    assert [answer.status_code for answer in answers].count(201) == 1
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert all(answer.json()["phase"] == "running" for answer in answers)
    problem(create(cpus=1), 409, "conflict")
    assert len(http.get("/v1/sandboxes").json()["items"]) == 1
    problem(http.post("/v1/sandboxes", json=SMALL, headers={"Idempotency-Key": "x" * 300}), 400, "invalid_argument")


def test_get_or_create_by_name(http: httpx2.Client) -> None:
    def create(**more: Any) -> httpx2.Response:
        return http.post("/v1/sandboxes", json={**SMALL, "name": "mine", **more})

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: create(), range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201], [a.text for a in answers]
    assert len({answer.json()["id"] for answer in answers}) == 1
    found = problem(create(memory="512MiB", labels={"a": "b"}, runtime="gvisor"), 409, "already_exists")
    assert set(found["fields"]) == {"memory", "labels", "runtime"}
    assert found["existing"] == answers[0].json()["id"]
    assert found["hint"]


def test_pages_stay_as_they_were(http: httpx2.Client) -> None:
    """A cursor goes on after what was shown, whatever is created or deleted meanwhile."""

    def create(_: object = None) -> str:
        return str(http.post("/v1/sandboxes", json={**SMALL, "labels": {"set": "pages"}}).json()["id"])

    made = [create() for _ in range(5)]
    first = http.get("/v1/sandboxes", params={"limit": 2, "label": "set=pages"}).json()
    assert [item["id"] for item in first["items"]] == made[:2:-1]
    create()
    http.delete(f"/v1/sandboxes/{made[4]}")
    http.delete(f"/v1/sandboxes/{made[1]}")
    query = {"limit": 2, "label": "set=pages", "cursor": first["next_cursor"]}
    second = http.get("/v1/sandboxes", params=query).json()
    assert [item["id"] for item in second["items"]] == [made[2], made[0]]
    assert second.get("next_cursor") is None


def test_a_host_without_room_says_what_is_free(client: Client, http: httpx2.Client, instance: Instance) -> None:
    for asked, word in (
        ({"memory": "4TiB"}, "memory"),
        ({"memory": "40GiB", "persistence": "full", "runtime": "gvisor"}, "pool"),
    ):
        answer = http.post("/v1/sandboxes", json={**SMALL, **asked})
        found = problem(answer, 507, "no_capacity")
        assert word in found["detail"]
        assert int(answer.headers["retry-after"]) > 0
        for figure in ("memory_free", "memory_available", "pool_free", "slots_free"):
            assert found[figure] > 0
    with pytest.raises(NoCapacity) as refused:
        Sandbox.create(template="test", memory="4TiB", client=client)
    assert refused.value.retry_after
    assert instance.run("create", "--template", "test", "--memory", "4TiB", check=False).returncode == 6
    assert list(Sandbox.list(client=client)) == []
    assert instance.fsck() == []


def vanish(instance: Instance, method: str, path: str, *, declared: int, sent: bytes, read: int) -> None:
    """A client that speaks HTTP by hand, reads `read` bytes, and is gone without a word."""
    address = urlparse(instance.config["url"])
    with socket.create_connection((address.hostname or "", address.port or 0), 30) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {instance.config['key']}\r\n"
        head += (
            "Content-Type: application/octet-stream\r\n" if "/files" in path else "Content-Type: application/json\r\n"
        )
        connection.sendall(
            head.encode() + (f"Content-Length: {declared}\r\n" if declared else "").encode() + b"\r\n" + sent
        )
        left = read
        while left > 0 and (data := connection.recv(left)):
            left -= len(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, as of a crash


def test_clients_that_vanish_leave_nothing_open(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client)
    sandbox.exec("head -c 64M /dev/zero > big")
    home = f"/v1/sandboxes/{sandbox.id}"
    slow = json.dumps({"command": "sleep 30; echo late > late"}).encode()

    def all_of_them() -> None:
        vanish(instance, "POST", f"{home}/exec", declared=len(slow), sent=slow, read=0)
        vanish(instance, "POST", f"{home}/exec", declared=1000, sent=b'{"comm', read=0)
        vanish(instance, "POST", f"{home}/files?path=/home/user/up", declared=50 << 20, sent=b"x" * (1 << 20), read=0)
        vanish(instance, "PUT", f"{home}/tree?path=/home/user/tree", declared=50 << 20, sent=b"\0" * 4096, read=0)
        vanish(instance, "GET", f"{home}/files?path=/home/user/big", declared=0, sent=b"", read=1 << 20)
        vanish(instance, "GET", f"{home}/tree?path=/home/user", declared=0, sent=b"", read=1 << 20)
        vanish(instance, "GET", "/v1/events?follow=true", declared=0, sent=b"", read=10)
        vanish(instance, "GET", f"{home}/wait?phase=deleted&timeout=600", declared=0, sent=b"", read=0)

    def descriptors() -> list[int]:
        return [int(line.split()[1]) for line in census(instance)["descriptors"]]

    all_of_them()
    sandbox.exec("pkill sleep; true", user="root")
    before = descriptors()
    for _ in range(4):
        all_of_them()
    sandbox.exec("pkill sleep; true", user="root")
    # The server keeps a few idle connections to an agent, for the next request.
    until(lambda: all(now <= was + 4 for now, was in zip(descriptors(), before, strict=True)), 20, wait=0.3)
    assert sandbox.exec("echo fine").stdout == "fine\n"


def send(sandbox: Sandbox, number: signal.Signals) -> None:
    for pid in machine_pids(sandbox):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("verb", ["stop", "delete"])
def test_a_command_does_not_outwait_its_machine(client: Client, runtime: str, verb: str) -> None:
    sandbox = Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sandbox.exec, "echo $$ > began; sleep 1000")
        until(lambda: sandbox.exec("cat began").stdout)
        getattr(Sandbox.get(sandbox.id, client=client), verb)()
        failed = waiting.exception(timeout=15)
    assert isinstance(failed, SandkeepError), failed


def test_an_agent_that_hangs_or_dies_keeps_nobody_waiting(client: Client, instance: Instance) -> None:
    sandbox = Sandbox.create(template="test", runtime="gvisor", memory="256MiB", on_failure="stop", client=client)
    stream = sandbox.start_process("sleep 1000")
    outcomes: list[object] = []

    def gather(call: Callable[[], object]) -> threading.Thread:
        def body() -> None:
            try:
                outcomes.append(call())
            except SandkeepError as error:
                outcomes.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    waiting = [gather(lambda: sandbox.exec("sleep 1000")), gather(stream.wait)]
    until(lambda: len(sandbox.processes()) >= 2)
    send(sandbox, signal.SIGSTOP)
    with pytest.raises(SandkeepError):
        sandbox.exec("true", timeout=1)
    send(sandbox, signal.SIGKILL)
    for thread in waiting:
        thread.join(30)
    assert all(isinstance(outcome, SandkeepError) for outcome in outcomes), outcomes
    assert len(outcomes) == 2
    sandbox.wait("stopped", timeout=15)
    settled_fsck(instance)
