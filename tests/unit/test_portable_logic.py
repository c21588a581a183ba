"""Export and import through the whole platform on fakes: what travels, what is refused, and a kill at every step."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.portable import END, MAGIC, MANIFEST, PIECE, Frames, frame, head, key_text, parse_key
from sandkeep.domain.sandbox import Phase
from sandkeep.engine.archive import keys
from sandkeep.engine.archive.format import Body, Head, write_manifest
from sandkeep.engine.archive.keys import DataKey
from sandkeep.engine.opened import signing
from sandkeep.testing.platform import LocalPlatform, platform
from support.local import dies_at

pytestmark = pytest.mark.anyio

KEY = key_text(bytes(range(32)))
HEADER = "Sandkeep-File-Key"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[LocalPlatform]:
    async with platform(tmp_path / "here") as made:
        yield made


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[LocalPlatform]:
    async with platform(tmp_path / "there") as made:
        yield made


async def call(at: LocalPlatform, method: str, path: str, status: int = 200, **body: Any) -> Any:
    answer = await at.http.request(method, f"/v1/sandboxes{path}", json=body or None)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


AGREED: dict[str, Any] = {
    "labels": {"team": "the-people-of-the-web"},
    "env": {"TOKEN": "nobody-knows-this"},
    "network": "none",
    "ttl": "30d",
    "on_failure": "leave",
    "cpus": 1.5,
    "memory": "512MiB",
    "disk": "2GiB",
    "pids": 99,
    "pause_or_disk": True,
}


async def made(at: LocalPlatform, persistence: str = "volume", stop: str = "stop") -> str:
    view = await call(at, "POST", "", 201, name="dev", persistence=persistence, **AGREED)
    disk = at.disks.path(view["id"])
    (disk / "mine").write_text("kept-by-itself")
    for number in range(40):
        (disk / f"large{number}").write_bytes(os.urandom(300 << 10))
    await call(at, "PUT", "/dev/timeline", every="1h", keep_last=3)
    if stop:
        await call(at, "POST", f"/dev/{stop}")
    return str(view["id"])


async def exported(at: LocalPlatform, ref: str = "dev", status: int = 200, key: str = KEY) -> bytes:
    answer = await at.http.post(f"/v1/sandboxes/{ref}/export", headers={HEADER: key})
    assert answer.status_code == status, answer.text
    return answer.content


async def imported(
    at: LocalPlatform, data: bytes, status: int = 201, key: str = KEY, once: str = "", **query: str
) -> Any:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    headers = {HEADER: key, **({"Idempotency-Key": once} if once else {})}
    answer = await at.http.post("/v1/import", params=query, headers=headers, content=pieces())
    assert answer.status_code == status, answer.text
    return answer.json()


async def events(at: LocalPlatform, sandbox_id: str) -> list[str]:
    answer = await at.http.get("/v1/events")
    return [event["kind"] for event in answer.json()["items"] if event["subject"] == sandbox_id]


async def empty(at: LocalPlatform) -> bool:
    contents = await at.disks.contents()
    records = [record for record in at.parts.records.sandboxes.values() if record.phase is not Phase.DELETED]
    return (
        (contents.disks, contents.generations, records) == ({}, {}, [])
        and (await at.node.fsck())["findings"] == []
        and (await call(at, "GET", ""))["items"] == []
    )


async def test_what_was_agreed_travels_and_who_it_is_does_not(here: LocalPlatform, there: LocalPlatform) -> None:
    sandbox = await made(here)
    before = await call(here, "GET", "/dev")
    data = await exported(here)
    assert not any(
        word in data for word in (b"people-of-the-web", b"nobody-knows", b"kept-by-itself", sandbox.encode())
    )
    assert (await here.disks.contents()).generations == {}, "the moment that was kept for it is gone"
    assert await call(here, "GET", "/dev") == before, "it is as it was"
    assert (await events(here, sandbox))[-1] == "sandbox.exported"
    view = await imported(there, data)
    assert view["id"] != sandbox and (view["name"], view["phase"], view["template"]) == ("dev", "stopped", "base")
    for field in ("labels", "cpus", "memory", "disk", "pids", "persistence", "network", "on_failure", "pause_or_disk"):
        assert view[field] == before[field], field
    assert view["ttl"] == before["ttl"]
    assert view["expires_at"] != before["expires_at"], "its lifetime begins anew"
    timelines = [await call(at, "GET", "/dev/timeline") for at in (here, there)]
    assert timelines[0]["every"] == timelines[1]["every"] and timelines[1]["keep_last"] == 3
    assert (there.disks.path(view["id"]) / "mine").read_text() == "kept-by-itself"
    was, now = here.parts.records.sandboxes[sandbox], there.parts.records.sandboxes[view["id"]]
    assert now.spec.env == {"TOKEN": "nobody-knows-this"} and now.spec.timeline == was.spec.timeline
    assert now.token != was.token and now.sandbox.project_id != was.sandbox.project_id
    assert await events(there, view["id"]) == ["sandbox.created", "sandbox.imported"]
    await call(there, "POST", "/dev/start")
    assert there.parts.records.sandboxes[view["id"]].owed is None
    assert any(values.new_identity for values in there.guest.inits), "it boots with keys of its own"
    fork = (await call(there, "POST", "/dev/fork", 201, kind="disk"))["items"][0]
    assert fork["phase"] == "running", "it has no template here, and can be forked all the same"


async def test_memory_is_let_in_under_another_identity(here: LocalPlatform, there: LocalPlatform) -> None:
    sandbox = await made(here, "full", "pause")
    data = await exported(here)
    view = await imported(there, data, name="other")
    assert (view["phase"], view["hold"], view["name"]) == ("paused", "disk", "other")
    await there.restart_node()
    was, now = here.parts.records.sandboxes[sandbox], there.parts.records.sandboxes[view["id"]]
    assert now.generation is not None and there.parts.records.token_in(now.generation.id) == was.token
    snapshot = await call(there, "POST", "/other/snapshots", 201, name="there", kind="full")
    assert there.parts.records.snapshots[snapshot["id"]].token == was.token
    answer = await call(there, "POST", "/other/archive", 409)
    assert "sandkeep resume other" in answer["hint"]
    again = await imported(there, await exported(there, "other"), name="third")
    assert again["hold"] == "disk", "it travels on, also before it ran"
    assert (await call(there, "POST", "/other/resume"))["phase"] == "running"
    become = there.guest.resumes[-1].become
    assert become is not None and become.sandbox_id == view["id"] and become.credential == now.token
    assert (await call(there, "GET", "/other/receipt"))["event"] == "resume"
    assert (await call(there, "POST", "/other/fork", 201, snapshot="there"))["items"][0]["phase"] == "running"


async def test_memory_that_does_not_fit_is_refused_and_the_way_out_named(
    here: LocalPlatform, there: LocalPlatform
) -> None:
    await made(here, "full", "pause")
    data = await exported(here)
    for runtime in there.runtimes.values():
        runtime._build = "another"
    answer = await imported(there, data, 400)
    assert "--disk-only" in answer["hint"] and await empty(there)
    view = await imported(there, data, disk_only="true")
    assert (view["phase"], view["hold"]) == ("stopped", None) and "left aside" in view["reason"]
    assert (there.disks.path(view["id"]) / "mine").read_text() == "kept-by-itself"
    assert (await there.disks.contents()).generations == {}


async def test_only_what_stands_still_can_be_exported(here: LocalPlatform) -> None:
    await made(here, "full", stop="")
    hint = (await exported(here, status=409)).decode()
    assert "sandkeep pause dev" in hint and "sandkeep stop dev" in hint
    await call(here, "POST", "/dev/pause", hold="memory")
    assert "in memory" in (await exported(here, status=409)).decode()
    await call(here, "POST", "/dev/stop")
    await call(here, "POST", "/dev/archive")
    assert "sandkeep wake dev" in (await exported(here, status=409)).decode()
    assert "key" in (await exported(here, status=400, key="nonsense")).decode()
    await exported(here, "missing", status=404)
    await call(here, "POST", "", 201, name="brief", persistence="ephemeral")
    assert "ephemeral" in (await exported(here, "brief", status=400)).decode()


async def frames_of(data: bytes) -> list[tuple[bytes, bytes]]:
    async def whole() -> AsyncIterator[bytes]:
        yield data

    frames, found = Frames(whole()), []
    while not found or found[-1][0] != END:
        found.append(await frames.next(1 << 30))
    return found


async def test_whatever_is_done_to_a_file_it_is_refused_and_nothing_stays(
    here: LocalPlatform, there: LocalPlatform
) -> None:
    await made(here, "full", "pause")
    data, other = await exported(here), await exported(here)
    parts = await frames_of(data)
    places, at = [], len(MAGIC)
    for kind, content in parts:
        places.append((kind, at))
        at += 5 + len(content)
    pieces = [place for kind, place in places if kind == PIECE]
    assert at == len(data) and len(pieces) > 5 and data != other

    def joined(found: list[tuple[bytes, bytes]]) -> bytes:
        return MAGIC + b"".join(frame(kind, content) for kind, content in found)

    assert joined(parts) == data
    wrong = {
        "nothing": b"",
        "not ours": b"PK\3\4" + data,
        "an archive tool's": os.urandom(100_000),
        "cut in a piece": data[: pieces[3] + 100],
        "cut between pieces": data[: pieces[4]],
        "without its end": data[:-5],
        "cut in its end": data[:-1],
        "something after it": data + b"\0",
        "without one piece": joined([*parts[:4], *parts[5:]]),
        "a piece twice": joined([*parts[:5], parts[4], *parts[5:]]),
        "two pieces swapped": joined([*parts[:-3], parts[-2], parts[-3], parts[-1]]),
        "another's manifest": joined([parts[0], (await frames_of(other))[1], *parts[2:]]),
        "another's piece": joined([*parts[:-2], (await frames_of(other))[-2], parts[-1]]),
        "another's key": joined([(await frames_of(other))[0], *parts[1:]]),
        "a huge size": data[:-5] + END + b"\xff\xff\xff\xff",
        "a huge manifest": head(parts[0][1], b"")[:-4] + b"\x7f\xff\xff\xff",
    }
    for name, where in {"magic": 3, "key": 60, "manifest": places[1][1] + 90, "piece": pieces[-1] + 45}.items():
        wrong[f"a flipped bit in its {name}"] = data[:where] + bytes([data[where] ^ 4]) + data[where + 1 :]
    for what, content in wrong.items():
        answer = await imported(there, content, 400)
        assert answer["code"] == "invalid_argument" and answer["hint"], what
        assert await empty(there), what
    answer = await imported(there, data, 400, key=key_text(bytes(32)))
    assert "key" in answer["detail"] and answer["field"] == "key" and await empty(there)
    assert (await imported(there, data))["phase"] == "paused", "and the file itself comes in"


async def forged(record: dict[str, Any], needs: dict[str, Any] | None = None, **body: Any) -> bytes:
    """By somebody who has a key of their own, as everybody has."""
    data_key = keys.new_key()
    wrapped = bytes.fromhex(keys.wrap(data_key, parse_key(KEY), "portable"))
    made = replace(Body(1, 0, (), (), needs=needs or {}, record=record), **body)
    return head(wrapped, write_manifest(Head("", "", 0, "", 0.0), made, DataKey(data_key), signing(data_key))) + frame(
        END
    )


async def test_a_manifest_that_its_author_signed_is_not_believed(here: LocalPlatform, there: LocalPlatform) -> None:
    sandbox = await made(here)
    spec = here.parts.records.sandboxes[sandbox]
    good: dict[str, Any] = {"id": sandbox, "name": "dev", "spec": {"template": "", "template_name": "base"}}
    assert spec.spec.template_name == "base"
    memory = {"files": {}, "requires": {}, "agent": "fake", "token": "t" * 20, "created_at": 0.0}
    for record, more in (
        ({}, {}),
        ({**good, "name": "../../etc"}, {}),
        ({**good, "id": "sbx_../../x"}, {}),
        ({**good, "spec": {"template": "", "template_name": "x", "limits": {"memory": 1}}}, {}),
        ({**good, "spec": {"template": "", "template_name": "x", "persistence": "ephemeral"}}, {}),
        ({**good, "spec": {"template": "", "template_name": "x", "env": {"A=B": "x"}}}, {}),
        ({**good, "spec": []}, {}),
        (good, {"needs": memory}),
        (good, {"needs": {**memory, "agent": ".."}}),
        (good, {"needs": {**memory, "requires": {"sha256": "../../../bin"}}}),
        ({**good, "more": "x" * (2 << 20)}, {}),
    ):
        answer = await imported(there, await forged(record, **more), 400)
        assert "refused" in answer["detail"], record
        assert await empty(there)
    large = tuple(os.urandom(32) for _ in range(200_000))
    answer = await imported(there, await forged(good, size=1 << 60, content=large), 507)
    assert answer["code"] == "no_capacity" and await empty(there)
    answer = await imported(there, await forged(good, entries=1, index=large[:1]), 400)
    assert "missing" in answer["detail"] and await empty(there)


async def test_a_name_that_is_taken_and_a_repeated_request(here: LocalPlatform, there: LocalPlatform) -> None:
    await made(here)
    data = await exported(here)
    answer = await imported(here, data, 409)
    assert answer["code"] == "already_exists" and "--name" in answer["hint"]
    assert len((await call(here, "GET", ""))["items"]) == 1
    assert (await imported(here, data, name="dev2"))["name"] == "dev2", "beside the one that it was"
    first = await imported(there, data, once="one")
    assert (await imported(there, data, 200, once="one"))["id"] == first["id"]
    assert (await imported(there, data, 409, once="one", name="x"))["code"] == "conflict"
    assert len((await call(there, "GET", ""))["items"]) == 1
    assert "disk_only" in (await imported(there, data, 400, disk_only="perhaps"))["detail"]


async def test_an_upload_that_breaks_off_leaves_nothing(here: LocalPlatform, there: LocalPlatform) -> None:
    await made(here)
    data = await exported(here)
    told = []

    async def receive() -> dict[str, Any]:
        told.append(1)
        if len(told) == 1:
            return {"type": "http.request", "body": data[: len(data) // 2], "more_body": True}
        return {"type": "http.disconnect"}

    async def broken() -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        raise InvalidArgument("the upload broke off")

    project = await there.services.keys.default_project()
    with pytest.raises(InvalidArgument, match="broke off"):
        await there.services.portable.bring(project, None, KEY, broken(), disk_only=False, key=None, caller="me")
    assert await empty(there)
    task = there.services.portable.bring(project, None, KEY, _stuck(data), disk_only=False, key=None, caller="me")
    with anyio.move_on_after(0.5):
        await task
    assert await empty(there)
    assert (await imported(there, data))["phase"] == "stopped"


async def _stuck(data: bytes) -> AsyncIterator[bytes]:
    yield data[: len(data) // 2]
    await anyio.sleep_forever()


@pytest.mark.parametrize("persistence", ["volume", "full"])
async def test_a_kill_in_an_export_leaves_nothing_of_its_moment(here: LocalPlatform, persistence: str) -> None:
    sandbox = await made(here, persistence, "pause" if persistence == "full" else "stop")
    for made_already in (False, True):
        generation = new_id(IdKind.GENERATION)
        here.parts.journal.begin(new_id(IdKind.OPERATION), "export", sandbox).step("generation.begin")
        if made_already:
            await here.disks.snapshot(sandbox, generation)
        assert (await here.node.fsck())["findings"] == [], "it is no stranger while it is being read"
        await here.restart_node()
        assert generation not in (await here.disks.contents()).generations
        assert (await here.node.fsck())["findings"] == []
    await exported(here)


@pytest.mark.parametrize("persistence", ["volume", "full"])
async def test_a_kill_at_any_step_of_an_import_leaves_all_or_nothing(
    here: LocalPlatform, there: LocalPlatform, monkeypatch: pytest.MonkeyPatch, persistence: str
) -> None:
    await made(here, persistence, "pause" if persistence == "full" else "stop")
    data = await exported(here)
    number, reached = 0, True
    while reached:
        number += 1
        with dies_at(number, there, monkeypatch) as death:
            await there.http.post("/v1/import", headers={HEADER: KEY}, content=data)
        reached = death.reached
        await there.restart_node()
        assert (await there.node.fsck())["findings"] == []
        with anyio.fail_after(20):
            while any(item["phase"] not in ("stopped", "paused") for item in (await call(there, "GET", ""))["items"]):
                await anyio.sleep(0.01)
        for item in (await call(there, "GET", ""))["items"]:
            assert (there.disks.path(item["id"]) / "mine").read_text() == "kept-by-itself"
            await call(there, "DELETE", f"/{item['id']}", 204)
        assert await empty(there)
    assert number > 4


def test_the_key_as_text() -> None:
    assert parse_key(f" {KEY}\n") == bytes(range(32))
    for wrong in ("", "skf_", KEY[:-1], KEY + "0", "sk_" + "a" * 64, KEY.upper()):
        with pytest.raises(InvalidArgument) as refused:
            parse_key(wrong)
        assert not wrong or wrong not in str(refused.value)


async def test_manifest_frames_are_found_behind_signs_of_life() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        whole = MAGIC + frame(b"K", b"wrapped") + frame(b".") * 3 + frame(MANIFEST, b"it") + b"rest"
        for start in range(0, len(whole), 3):
            yield whole[start : start + 3]

    frames = Frames(chunks())
    assert await frames.head() == (b"wrapped", b"it")
    assert b"".join([chunk async for chunk in frames.rest()]) == b"rest"
