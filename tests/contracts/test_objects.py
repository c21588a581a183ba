"""What contracts.objects promises, asked of every driver: a folder, an S3 server on loopback, and the fake."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandkeep.contracts.objects import Objects
from sandkeep.domain.errors import InvalidArgument, NotFound, PermissionDenied, SandkeepError, TooLarge, Unavailable
from sandkeep.drivers.fake.objects import FakeObjects
from sandkeep.drivers.objects.folder import FolderObjects
from sandkeep.drivers.objects.remote import RemoteObjects
from support.s3 import s3_server

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["folder", "s3", "fake"])
async def on(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Objects]:
    if request.param == "s3":
        with s3_server(tmp_path) as server:
            store = RemoteObjects(server.url, server.options)
            yield store
            await store.close()
        return
    yield FolderObjects(tmp_path / "archive") if request.param == "folder" else FakeObjects()


async def test_what_was_put_is_what_is_got(on: Objects) -> None:
    for data in (b"", b"one", bytes(range(256)) * 4096):
        await on.put("a/b/one", data)
        assert await on.get("a/b/one", 2 << 20) == data
    assert await on.sizes("a") == {"a/b/one": 1 << 20}


async def test_what_is_not_there(on: Objects) -> None:
    await on.put("a/b", b"x")
    with pytest.raises(NotFound):
        await on.get("a/c", 10)
    assert await on.sizes("nothing") == {}
    await on.delete(["a/c", "b/d"])


async def test_a_folder_holds_what_lies_below_it_and_nothing_else(on: Objects) -> None:
    for key in ("one/a", "one/b/c", "one_more/d"):
        await on.put(key, key.encode())
    assert sorted(await on.sizes("one")) == ["one/a", "one/b/c"]
    await on.delete(["one/a", "one/b/c"])
    assert await on.sizes("one") == {}
    assert await on.sizes("one_more") == {"one_more/d": 10}


async def test_what_is_too_large_is_not_read(on: Objects) -> None:
    await on.put("a", b"x" * 1000)
    assert len(await on.get("a", 1000)) == 1000
    with pytest.raises(TooLarge):
        await on.get("a", 999)


@pytest.mark.parametrize("key", ["../a", "/a", "a/../../b", "a//b", "", "a\0b", ".a", "A"])
async def test_no_key_leads_elsewhere(tmp_path: Path, key: str) -> None:
    for store in (FolderObjects(tmp_path), RemoteObjects("s3://nowhere", {"endpoint": "http://127.0.0.1:1"})):
        with pytest.raises(InvalidArgument):
            await store.put(key, b"x")
    assert list(tmp_path.iterdir()) == []


async def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    store = FolderObjects(tmp_path / "archive")
    await store.put("a/b", b"x")
    (tmp_path / "archive/a/c").symlink_to(tmp_path / "secret")
    with pytest.raises(SandkeepError):
        await store.get("a/c", 100)


async def test_a_store_that_does_not_answer_and_one_that_refuses(tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        wrong = RemoteObjects(server.url, {**server.options, "secret_access_key": "wrong"})
        with pytest.raises(PermissionDenied) as refused:
            await wrong.put("a", b"x")
        assert server.options["secret_access_key"] not in str(refused.value)
    with pytest.raises(Unavailable) as away:
        await RemoteObjects(server.url, server.options).put("a", b"x")
    assert away.value.retry_after
    with pytest.raises(InvalidArgument):
        await RemoteObjects("s3://", {}).put("a", b"x")
