"""The whole platform on PostgreSQL: the database dies under load; a backup is restored next to newer sandboxes."""

import json
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NotFound
from support.instance import Instance, client_of, until
from support.postgres import Postgres
from support.witness import ask, settled_fsck, start_witness

pytestmark = [pytest.mark.requires("btrfs", "gvisor", "runc", "postgres")]


@pytest.fixture(scope="module")
def on_postgres(postgres: Postgres) -> Iterator[Instance]:
    with Instance.made("test", SANDKEEP_DATABASE_URL=postgres.fresh()) as made:
        yield made


@pytest.fixture
def client(on_postgres: Instance) -> Iterator[Client]:
    on_postgres.ensure_up()
    with client_of(on_postgres) as made:
        yield made
        on_postgres.clean(made)


class Caller(threading.Thread):
    """Creates, changes and deletes sandboxes without retries, and notes what was acknowledged."""

    def __init__(self, instance: Instance, number: int) -> None:
        super().__init__()
        saved = instance.config
        self.http = httpx2.Client(
            base_url=saved["url"], headers={"authorization": f"Bearer {saved['key']}"}, timeout=60, trust_env=False
        )
        self.number = number
        self.ending = threading.Event()
        self.statuses: list[int] = []
        self.acknowledged = 0
        self.labels: dict[str, tuple[int, int]] = {}
        """id -> the last value acknowledged, and the last one asked for."""
        self.deleted: list[str] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self._round()
        except Exception as error:
            self.failure = error
        finally:
            self.http.close()

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any] | None:
        answer = self.http.request(method, path, **options)
        self.statuses.append(answer.status_code)
        if answer.status_code >= 500:
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            return None
        if answer.status_code < 400:
            self.acknowledged += 1
        return dict(answer.json()) if answer.content else {}

    def _again(self, method: str, path: str, **options: Any) -> dict[str, Any] | None:
        """Until it is answered with something else than 503."""
        while (answer := self._call(method, path, **options)) is None and not self.ending.is_set():
            time.sleep(0.05)
        return answer

    def _round(self) -> None:
        body = {"template": "test", "runtime": "runc", "memory": "128MiB", "labels": {"n": "0"}}
        key = {"idempotency-key": secrets.token_hex(8)}
        made = self._again("POST", "/v1/sandboxes", json=body, headers=key)
        if not made or "id" not in made:
            assert made is None or made["code"] == "not_found", made  # an interrupted create was undone
            return
        path = f"/v1/sandboxes/{made['id']}"
        self.labels[made["id"]] = (0, 0)
        for value in range(1, 4):
            self.labels[made["id"]] = (self.labels[made["id"]][0], value)
            if (
                changed := self._call("PATCH", path, json={"labels": {"n": str(value)}})
            ) is not None and "id" in changed:
                self.labels[made["id"]] = (value, value)
        if self.number % 2:
            gone = self._again("DELETE", path)
            if gone is not None:
                del self.labels[made["id"]]
                self.deleted.append(made["id"])


def test_postgres_dies_under_load_and_nothing_acknowledged_is_lost(
    client: Client, on_postgres: Instance, postgres: Postgres
) -> None:
    kept = Sandbox.create(template="test", memory="256MiB", persistence="full", client=client)
    start_witness(kept).detach()
    before = ask(kept)["pid"]
    kept.pause()
    stream = Sandbox.create(template="test", runtime="runc", memory="128MiB", client=client)
    start_witness(stream).detach()
    server = on_postgres.pid("server")
    callers = [Caller(on_postgres, number) for number in range(3)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(2):
            counts = [caller.acknowledged for caller in callers]
            until(lambda counts=counts: all(c.acknowledged > n + 3 for c, n in zip(callers, counts, strict=True)), 60)
            postgres.kill()
            refused = sum(caller.statuses.count(503) for caller in callers)
            until(lambda refused=refused: sum(c.statuses.count(503) for c in callers) > refused + 3, 30)
            with httpx2.Client(base_url=on_postgres.config["url"], trust_env=False) as http:
                assert http.get("/readyz").status_code == 503
                assert "database" in http.get("/readyz").json()["reason"]
                assert http.get("/healthz").status_code == 200
            assert ask(stream)["gap"] < 2  # a sandbox in use is not held up
            postgres.start()
        counts = [caller.acknowledged for caller in callers]
        until(lambda: all(c.acknowledged > n + 3 for c, n in zip(callers, counts, strict=True)), 60)
    finally:
        postgres.start()
        for caller in callers:
            caller.ending.set()
        for caller in callers:
            caller.join(60)
    assert [caller.failure for caller in callers] == [None] * 3
    assert on_postgres.pid("server") == server
    found = {sandbox.id: sandbox for sandbox in Sandbox.list(client=client)}
    for caller in callers:
        for identifier, (acknowledged, asked) in caller.labels.items():
            assert acknowledged <= int(found[identifier].view.labels["n"]) <= asked
        assert set(caller.deleted) & found.keys() == set()
    settled_fsck(on_postgres)
    kept.refresh()
    assert (kept.phase, kept.hold) == ("paused", "disk")
    kept.resume()
    assert ask(kept)["pid"] == before


@pytest.mark.long
def test_a_backup_is_restored_next_to_newer_sandboxes(client: Client, on_postgres: Instance, tmp_path: Path) -> None:
    """From PostgreSQL into PostgreSQL, then into SQLite."""
    file = tmp_path / "one.backup"
    both, deleted = (
        Sandbox.create(name=name, template="test", runtime="runc", memory="128MiB", client=client)
        for name in ("both", "deleted")
    )
    start_witness(both).detach()
    pid = ask(both)["pid"]
    taken = on_postgres.json("backup", "create", str(file))
    assert taken["rows"]["sandboxes"] == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert on_postgres.config["key"] not in file.read_text()
    deleted.delete()
    newer = Sandbox.create(name="newer", template="test", runtime="runc", memory="128MiB", client=client)
    start_witness(newer).detach()
    machine = ask(newer)["pid"]
    both.pause(hold="memory")
    both.resume()  # the node is ahead of the backup

    refused = on_postgres.run("backup", "restore", str(file), "--json", check=False)
    assert refused.returncode == 5
    assert "running" in json.loads(refused.stderr)["error"]["message"]
    done = on_postgres.json("backup", "restore", str(file), "--yes")
    assert done["sandboxes"] == {"both": 1, "only_backup": 1, "only_node": 1}
    assert done["kept"].startswith("schema sandkeep_before_restore_")
    _matches(on_postgres, pid)

    on_postgres.run("down")
    on_postgres.env["SANDKEEP_DATABASE_URL"] = ""
    on_postgres.run("setup", "--template", "test")  # the daemons go by the file alone
    done = on_postgres.json("backup", "restore", str(file))
    assert done["sandboxes"] == {"both": 1, "only_backup": 1, "only_node": 1}
    on_postgres.run("up")
    assert (on_postgres.root / "data/server/sandkeep.db").stat().st_uid != 0
    _matches(on_postgres, pid)
    assert f"{machine}" and [f["subject"] for f in on_postgres.fsck()] == [newer.id]


def _matches(instance: Instance, pid: int) -> None:
    """What both know goes on and can be changed; what was deleted is no longer running; nothing of the node is gone."""
    with client_of(instance) as client:
        until(lambda: not list(Sandbox.list(name="deleted", client=client)), 30)
        both = Sandbox.get("both", client=client)
        assert ask(both)["pid"] == pid
        both.pause(hold="memory")
        both.resume()
        assert ask(both)["pid"] == pid
        with pytest.raises(NotFound):
            Sandbox.get("newer", client=client)
    kinds = {finding["kind"] for finding in instance.fsck()}
    assert kinds == {"sandbox.unknown_to_server"}
