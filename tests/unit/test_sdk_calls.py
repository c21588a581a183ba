"""Calls against a real server in a thread: answers, pages, retries, what is never sent twice."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.fake_api import KEY, FakeApi, serve
from tests.support.fake_shapes import answer

from sandkeep import AsyncClient, AsyncSandbox, Client, Sandbox
from sandkeep.sdk import errors


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(FakeApi()) as running:
        yield running


@pytest.fixture
def client(api: FakeApi) -> Iterator[Client]:
    with Client(api.url, KEY, retry_for=3.0) as made:
        yield made


def calls(api: FakeApi, method: str, end: str) -> int:
    return sum(1 for seen, path in api.requests if seen == method and path.endswith(end))


def test_create_sends_what_was_given_and_no_more(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create("dev", memory="1GiB", env={"A": "1"}, ttl="1h", client=client)
    assert sandbox.view.model_extra is None
    asked = api.sandboxes[sandbox.id]["asked"]
    assert asked == {"name": "dev", "memory": "1GiB", "env": {"A": "1"}, "ttl": "1h"}
    assert (sandbox.name, sandbox.phase, sandbox.cpus, sandbox.env) == ("dev", "running", 2.0, {"A": "1"})
    assert Sandbox.get("dev", client=client).id == sandbox.id


def test_create_is_repeated_under_one_key(api: FakeApi, client: Client) -> None:
    api.drop(2)
    sandbox = Sandbox.create("dev", client=client)
    assert calls(api, "POST", "/v1/sandboxes") == 3
    assert len(api.sandboxes) == 1
    assert sandbox.id in api.sandboxes
    keys = {head.get("idempotency-key") for head in api.headers if "idempotency-key" in head}
    assert len(keys) == 1


def test_exec_is_never_sent_twice(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.drop()
    with pytest.raises(errors.ConnectionLost) as caught:
        sandbox.exec("rm -rf /tmp/x")
    assert len(api.execs) == 1
    assert "look" in (caught.value.hint or "")
    api.fail(503, "unavailable", headers={"retry-after": "0.01"})
    with pytest.raises(errors.Unavailable):
        sandbox.exec("x")
    assert len(api.execs) == 1


def test_exec_results(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.exec = lambda body: answer(
        exit_code=137, signal=9, stdout="/wA=", stdout_encoding="base64", stderr="e", timed_out=True
    )
    result = sandbox.exec(["cat"], stdin=b"\xff\x00", user="root", cwd="/w", env={"A": "b"}, timeout="5s")
    assert result.stdout_bytes == b"\xff\x00"
    assert (result.stdout, result.stderr) == ("\ufffd\x00", "e")
    assert (result.ok, result.signal, result.timed_out, result.pid) == (False, 9, True, 9)
    assert api.execs[-1] == {
        "command": ["cat"], "user": "root", "cwd": "/w", "env": {"A": "b"}, "timeout": "5s",
        "stdin": "/wA=", "stdin_encoding": "base64",
    }  # fmt: skip
    sandbox.exec("cat", stdin="text")
    assert api.execs[-1] == {"command": "cat", "stdin": "text"}


def test_rates_are_waited_for_and_quotas_are_not(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.fail(429, "quota_exceeded", 2, {"retry-after": "0.05"})
    assert sandbox.exec("x").ok
    api.fail(429, "quota_exceeded")
    with pytest.raises(errors.QuotaExceeded):
        sandbox.exec("x")
    api.fail(429, "quota_exceeded", headers={"retry-after": "60"})
    started = time.monotonic()
    with pytest.raises(errors.QuotaExceeded) as caught:
        sandbox.refresh()
    assert caught.value.retry_after == 60
    assert time.monotonic() - started < 1
    api.fail(503, "unavailable", 2, {"retry-after": "0.05"})
    sandbox.refresh()
    api.fail(507, "no_capacity", headers={"retry-after": "0.01"}, free=1, hint="stop something")
    with pytest.raises(errors.NoCapacity) as full:
        Sandbox.create(client=client)
    assert (full.value.hint, full.value.details) == ("stop something", {"free": 1})


def test_a_repeated_delete_that_finds_nothing_is_done(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.drop()
    sandbox.delete()
    assert not api.sandboxes
    with pytest.raises(errors.NotFound):
        sandbox.delete()


def test_refused_connections_are_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    api, done = FakeApi(), threading.Event()
    api.add("dev")

    def late() -> None:
        time.sleep(0.3)
        with serve(api, port):
            done.wait(10)

    thread = threading.Thread(target=late)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{port}", KEY, retry_for=5.0) as client:
            assert Sandbox.get("dev", client=client).exec("hi").ok
    finally:
        done.set()
        thread.join()
    with Client(f"http://127.0.0.1:{port}", KEY, retry_for=0.1) as client:
        with pytest.raises(errors.ConnectionFailed) as caught:
            Sandbox.get("dev", client=client)
        assert "sandkeep up" in (caught.value.hint or "")


def test_lists_go_through_all_pages(api: FakeApi, client: Client) -> None:
    for number in range(8):
        api.add(f"n{number}", labels={"parity": str(number % 2)}, phase="running" if number < 4 else "paused")
    assert [box.name for box in Sandbox.list(client=client)] == [f"n{number}" for number in range(8)]
    assert [box.name for box in Sandbox.list(labels={"parity": "1"}, phases=["paused"], client=client)] == ["n5", "n7"]


def test_verbs_and_update(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create("dev", client=client)
    sandbox.pause(hold="memory")
    assert (sandbox.phase, sandbox.hold) == ("paused", "memory")
    sandbox.resume()
    sandbox.stop()
    assert sandbox.phase == "stopped"
    sandbox.start()
    sandbox.update(cpus=4, labels={"a": "b"})
    assert (sandbox.cpus, sandbox.labels, sandbox.ttl) == (4.0, {"a": "b"}, None)
    api.sandboxes[sandbox.id]["ttl"] = 5.0
    sandbox.refresh()
    sandbox.update(cpus=3)
    assert sandbox.ttl == 5.0
    sandbox.update(ttl=None)
    assert sandbox.ttl is None
    sandbox.wait("running", timeout="1m")
    assert sandbox.stats().processes == 3
    assert sandbox.logs() == "agent: up\n"
    sandbox.heartbeat()
    assert api.heartbeats == 1


def test_the_context_manager_deletes_ephemeral_ones_only(api: FakeApi, client: Client) -> None:
    with Sandbox.create("keep", client=client):
        pass
    with Sandbox.create("go", persistence="ephemeral", client=client):
        pass
    with Sandbox.create("gone", persistence="ephemeral", client=client) as sandbox:
        sandbox.delete()
    assert [view["name"] for view in api.sandboxes.values()] == ["keep"]


def test_events_are_followed_across_connections(api: FakeApi, client: Client) -> None:
    for number in range(5):
        api.record("sandbox.paused", str(number))
    assert [event.seq for event in client.events()] == [1, 2, 3, 4, 5]
    assert [event.seq for event in client.events(after=3)] == [4, 5]
    followed = client.events(follow=True)
    assert [next(followed).seq for _ in range(5)] == [1, 2, 3, 4, 5]
    followed.close()  # type: ignore[attr-defined]


def test_templates_keys_and_figures(client: Client) -> None:
    assert [view.name for view in client.templates.list()] == ["base"]
    view = client.templates.build("web", ["true"])
    assert view.phase == "building"
    assert list(client.templates.log("web", follow=True)) == ["step 1", "step 2"]
    assert client.templates.wait("web").phase == "ready"
    assert client.keys.create("ci").secret == "sk_cdef"
    assert [key.name for key in client.keys.list()] == ["ci"]
    client.keys.revoke("key_1")
    client.templates.delete("web")
    assert [row.trust for row in client.runtimes()] == ["untrusted code", "trusted code only"]
    assert client.version().api == 1
    assert client.node().disk_driver == "btrfs"


def test_snapshots_are_made_found_and_deleted(api: FakeApi, client: Client) -> None:
    sandbox, other = Sandbox.create("dev", client=client), Sandbox.create("other", client=client)
    api.drop()
    made = sandbox.snapshot("clean", kind="disk", tags=["nightly"])
    assert calls(api, "POST", "/snapshots") == 2
    assert (made.name, made.kind, made.tags, made.sandbox_id) == ("clean", "disk", ["nightly"], sandbox.id)
    nameless = sandbox.snapshots.create()
    assert nameless.name is None
    assert [view.id for view in sandbox.snapshots.list()] == [made.id, nameless.id]
    assert other.snapshots.list() == []
    assert sandbox.snapshots.get("clean") == sandbox.snapshots.get(made.id) == sandbox.snapshots.get(made) == made
    with pytest.raises(errors.AlreadyExists):
        sandbox.snapshot("clean")
    with pytest.raises(errors.NotFound, match="no snapshot clean"):
        other.snapshots.get("clean")
    sandbox.snapshots.delete(nameless)
    api.drop()
    sandbox.snapshots.delete("clean")
    assert sandbox.snapshots.list() == []
    with pytest.raises(errors.NotFound):
        sandbox.snapshots.delete("clean")


def test_a_rollback_is_never_sent_twice(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create("dev", client=client)
    made = sandbox.snapshot("clean")
    api.sandboxes[sandbox.id]["phase"] = "stopped"
    sandbox.rollback("clean")
    assert sandbox.phase == "stopped"
    sandbox.rollback(made, keep_before=False)
    assert api.rollbacks == [
        {"snapshot": "clean", "keep_before": True}, {"snapshot": made.id, "keep_before": False},
    ]  # fmt: skip
    api.drop()
    with pytest.raises(errors.ConnectionLost):
        sandbox.rollback("clean")
    assert len(api.rollbacks) == 3


def test_forks_are_sandboxes_made_once(api: FakeApi, client: Client) -> None:
    sandbox = Sandbox.create("dev", client=client)
    made = sandbox.snapshot("clean")
    api.drop()
    forks = sandbox.fork(3, snapshot=made, name="try")
    assert calls(api, "POST", "/fork") == 2
    assert [fork.name for fork in forks] == ["try-1", "try-2", "try-3"]
    assert len(api.sandboxes) == 4
    assert api.sandboxes[forks[0].id]["asked"] == {"count": 3, "snapshot": made.id, "name": "try"}
    assert forks[1].exec("echo hi").ok
    (fork,) = sandbox.fork()
    assert api.sandboxes[fork.id]["asked"] == {"count": 1}
    with pytest.raises(errors.NotFound):
        sandbox.fork(snapshot="nope")


def test_names_cannot_leave_their_place_in_the_path(api: FakeApi, client: Client) -> None:
    for name in ("../keys", "a/b", "..", "", "a?b#c"):
        with pytest.raises(errors.NotFound):
            Sandbox.get(name, client=client)
    assert all(path.startswith(("/v1/sandboxes/", "/v1/version")) for _, path in api.requests)


def test_the_version_is_asked_for_once_and_refused_when_it_does_not_fit(api: FakeApi, client: Client) -> None:
    Sandbox.create(client=client).exec("x")
    assert calls(api, "GET", "/v1/version") == 1
    api.version = {"version": "9.0.0", "api": 9, "oldest_client": "9.0.0"}
    with Client(api.url, KEY) as fresh, pytest.raises(errors.VersionMismatch, match="needs 9"):
        Sandbox.create(client=fresh)
    with Client(api.url, "sk_wrong") as wrong, pytest.raises(errors.Unauthenticated):
        Sandbox.get("x", client=wrong)


def test_a_slow_server_is_not_waited_for_forever(api: FakeApi) -> None:
    with Client(api.url, KEY, timeout=0.2) as client:
        sandbox = Sandbox.create(client=client)
        api.exec = lambda body: time.sleep(0.5) or answer()
        with pytest.raises(errors.DeadlineExceeded):
            sandbox.exec("x", timeout=0.0)


def test_the_default_client_comes_from_the_environment(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDKEEP_URL", api.url)
    monkeypatch.setenv("SANDKEEP_KEY", KEY)
    sandbox = Sandbox.create("dev")
    assert sandbox.client is Sandbox.get("dev").client
    sandbox.client.close()


def test_the_same_async(api: FakeApi) -> None:
    async def scenario() -> None:
        async with AsyncClient(api.url, KEY) as client:
            async with await AsyncSandbox.create("dev", persistence="ephemeral", client=client) as sandbox:
                results = await asyncio.gather(*(sandbox.exec(f"echo {number}") for number in range(20)))
                assert [result.stdout for result in results] == [f"echo {number}\n" for number in range(20)]
                assert [box.name async for box in AsyncSandbox.list(client=client)] == ["dev"]
                made = await sandbox.snapshot("clean")
                assert await sandbox.snapshots.list() == [made]
                await sandbox.rollback(made)
                for fork in await sandbox.fork(2, snapshot="clean"):
                    assert isinstance(fork, AsyncSandbox)
                    await fork.delete()
        assert not api.sandboxes

    asyncio.run(scenario())
