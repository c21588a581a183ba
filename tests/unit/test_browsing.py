"""Browsing through the server: whose sandboxes one sees, what is put back and how it is said. On fakes."""

import errno
import os
from pathlib import Path

import httpx2
import pytest

from sandkeep.domain.ids import IdKind, new_id
from sandkeep.edge.api.app import api_app
from sandkeep.lib import beneath
from sandkeep.testing.platform import VERSION, LocalPlatform, platform

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def made(local: LocalPlatform) -> tuple[str, str]:
    """A sandbox called `dev` and its snapshot `clean`."""
    answer = await local.http.post("/v1/sandboxes", json={"name": "dev", "template": "base"})
    sandbox = answer.json()["id"]
    root = local.disks.path(sandbox)
    (root / "etc").mkdir()
    (root / "etc/name").write_text("then")
    snapshot = (await local.http.post("/v1/sandboxes/dev/snapshots", json={"name": "clean"})).json()["id"]
    (root / "etc/name").write_text("now it is longer")
    return sandbox, snapshot


async def test_another_project_sees_nothing(tmp_path: Path) -> None:
    async with platform(tmp_path) as local:
        sandbox, snapshot = await made(local)
        async with local.services.events.change() as ledger:
            from sandkeep.store import keys

            project = new_id(IdKind.PROJECT)
            await keys.add_project(ledger.transaction, project, "other", 1.0)
        _, secret = await local.services.keys.create(project, "theirs")
        transport = httpx2.ASGITransport(app=api_app(local.services, VERSION))
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://test", headers=headers) as theirs:
            for http, status in ((local.http, 200), (theirs, 404)):
                for ref in ("dev", sandbox):
                    for what in ("list", "stat", "files", "tree"):
                        query = {"snapshot": "clean", "path": "/etc/name" if what in ("files", "stat") else "/etc"}
                        assert (
                            await http.get(f"/v1/sandboxes/{ref}/browse/{what}", params=query)
                        ).status_code == status
                for before, after in (
                    ("dev@clean", "dev"),
                    (snapshot, "dev"),
                    (snapshot, sandbox),
                    (snapshot, snapshot),
                ):
                    query = {"before": before, "after": after}
                    assert (await http.get("/v1/diff", params=query)).status_code == status, query
            body = {"snapshot": snapshot, "path": "/etc/name"}
            assert (await theirs.post(f"/v1/sandboxes/{sandbox}/restore", json=body)).status_code == 404


async def test_a_sandbox_shows_only_its_own_snapshots(tmp_path: Path) -> None:
    async with platform(tmp_path) as local:
        _, snapshot = await made(local)
        await local.http.post("/v1/sandboxes", json={"name": "other", "template": "base"})
        for ref in ("clean", snapshot):
            query = {"snapshot": ref, "path": "/etc/name"}
            answer = await local.http.get("/v1/sandboxes/other/browse/files", params=query)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert (
                await local.http.get("/v1/diff", params={"before": f"other@{ref}", "after": "dev"})
            ).status_code == 404


async def test_what_differs_without_the_file_systems_help(tmp_path: Path) -> None:
    async with platform(tmp_path) as local:
        await made(local)
        told = (await local.http.get("/v1/diff", params={"before": "dev@clean", "after": "dev"})).json()
        assert told["counts"] == {"added": 0, "changed": 1, "removed": 0}
        assert [(one["path"], one["what"]) for one in told["files"]] == [("/etc/name", ["content"])]
        assert (told["fast"], told["truncated"], told["left_out"]) == (False, False, [])


@pytest.mark.parametrize(
    ("path", "follow", "outcome"),
    [
        (b"/a/file", False, "file"),
        (b"a/../a/file", False, "file"),
        (b"/../../a/file", False, "file"),
        (b"/a/absolute", True, "file"),
        (b"/a/up", True, "file"),
        (b"/a/up", False, "link"),
        (b"/to-a/file", False, "file"),
        (b"/a/loop", True, errno.ELOOP),
        (b"/a/out", True, errno.ENOENT),
        (b"/a/magic", True, errno.ELOOP),
        (b"/no", False, errno.ENOENT),
        (b"/a/file/x", False, errno.ENOTDIR),
        (b"/" + b"x" * 256, False, errno.ENAMETOOLONG),
        (b"/a" * 40_000, False, errno.ENAMETOOLONG),
        (b"/a\0b", False, errno.ENAMETOOLONG),
        (b"/a/../" * 1000, False, errno.EXDEV),
    ],
)
async def test_nothing_above_a_root_is_opened(tmp_path: Path, path: bytes, follow: bool, outcome: str | int) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    (root / "a/file").write_text("inside")
    (root / "a/absolute").symlink_to("/a/file")
    (root / "a/up").symlink_to("../../../../../../../../a/file")
    (root / "a/out").symlink_to(f"../../../../../../../..{tmp_path}/secret")
    (root / "a/loop").symlink_to("loop")
    (root / "to-a").symlink_to("a")
    with (root / "a/file").open() as held, beneath.root(root) as base:
        (root / "a/magic").symlink_to(f"/proc/self/fd/{held.fileno()}")
        if isinstance(outcome, int):
            expected = {outcome, errno.ENOENT} if path.endswith(b"magic") else {outcome}
            with pytest.raises(OSError) as raised:  # noqa: PT011 - the number is looked at
                beneath.handle(base, path, follow=follow)
            assert raised.value.errno in expected
            return
        fd = beneath.handle(base, path, follow=follow)
        try:
            if outcome == "link":
                assert os.readlink(b"", dir_fd=fd).endswith(b"a/file")
                with pytest.raises(OSError, match="neither"):
                    beneath.opened(fd)
            else:
                with open(beneath.opened(fd)) as file:
                    assert file.read() == "inside"
        finally:
            os.close(fd)


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
async def test_what_is_no_file_is_never_opened(tmp_path: Path, kind: str) -> None:
    import socket

    path = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, 0o20600, os.makedev(1, 3))
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    with beneath.root(tmp_path) as base:
        fd = beneath.handle(base, b"odd", follow=True)
        try:
            with pytest.raises(OSError, match="neither"):
                beneath.opened(fd)
        finally:
            os.close(fd)
