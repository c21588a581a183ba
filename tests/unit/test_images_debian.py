"""Debian roots: the host's sources as values, the command line, the check of every template, one real build."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sandkeep.domain.errors import InvalidArgument, Unavailable
from sandkeep.drivers.images import sources
from sandkeep.drivers.images.debian import DebianBuilder, DebianSettings, command, host_sources
from sandkeep.drivers.images.root import check_root, settle
from sandkeep.drivers.images.sources import Source

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# sources


def test_deb822() -> None:
    text = f"""\
# a comment
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: trixie trixie-updates
 trixie-backports
Components: main contrib
Signed-By: {KEY}

Types: deb
URIs: http://mirror.test/security
Suites: trixie-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Enabled: no
Types: deb
URIs: http://off.test/
Suites: trixie
Components: main

Types: deb-src
URIs: http://source.test/
Suites: trixie
Components: main

Types: deb
URIs: http://vendor.test/
Suites: nodistro
Components: main
"""
    assert sources.for_release(sources.read_deb822(text)) == [
        Source("http://mirror.test/debian", "bookworm", KEY),
        Source("http://mirror.test/security", "bookworm-security"),
        Source("http://mirror.test/debian", "bookworm-updates", KEY),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deb http://m.test/debian bookworm main", [Source("http://m.test/debian", "bookworm")]),
        (
            f"deb [arch=amd64 signed-by={KEY}] http://m.test/debian stable main contrib # c",
            [Source("http://m.test/debian", "bookworm", KEY)],
        ),
        ("deb [trusted=yes] file:/srv/debian sid main", [Source("file:/srv/debian", "bookworm", "", True)]),
        ("deb http://m.test/security bullseye/updates main", [Source("http://m.test/security", "bookworm-security")]),
        ("deb http://m.test/debian bookworm contrib", []),
        ("deb http://m.test/ubuntu noble main", []),
        ("deb http://m.test/debian bookworm-backports main", []),
        ("# deb http://m.test/debian bookworm main", []),
        ("deb-src http://m.test/debian bookworm main", []),
    ],
)
def test_one_line(line: str, expected: list[Source]) -> None:
    assert sources.for_release(sources.read_one_line(f"\n{line}\n")) == expected


def test_a_source_is_written_as_it_was_read() -> None:
    for source in (Source("http://m.test/d", "bookworm", KEY), Source("file:/d", "bookworm", "", True)):
        assert sources.read_one_line(source.line()) == [source]


def test_the_guest_learns_no_credentials_and_no_files_of_the_host() -> None:
    text = sources.for_guest(
        [
            Source("http://me:secret@m.test/debian", "bookworm", "/etc/apt/keyrings/mine.gpg"),
            Source("file:/d", "bookworm"),
        ]
    )
    assert text == f"Types: deb\nURIs: http://m.test/debian\nSuites: bookworm\nComponents: main\nSigned-By: {KEY}\n"


def test_how_the_host_reaches_archives_is_kept() -> None:
    dump = """\
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.test:3128";
Acquire::http::Proxy::direct.test "DIRECT";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
APT::Install-Recommends "1";
"""
    assert sources.kept_options(dump) == [
        'Acquire::http::Proxy "http://proxy.test:3128"',
        'Acquire::http::Proxy::direct.test "DIRECT"',
        'Acquire::https::CaInfo "/etc/ssl/own.pem"',
        'Acquire::Check-Valid-Until "false"',
    ]


def test_host_sources_reads_what_apt_reads(tmp_path: Path) -> None:
    assert host_sources(tmp_path) == []
    (tmp_path / "sources.list").write_text("deb http://a.test/ bookworm main\n")
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/b.sources").write_text(
        "Types: deb\nURIs: http://b.test/\nSuites: sid\nComponents: main\n"
    )
    (tmp_path / "sources.list.d/c.list.disabled").write_text("deb http://c.test/ bookworm main\n")
    assert [source.uri for source in host_sources(tmp_path)] == ["http://a.test/", "http://b.test/"]


def test_command() -> None:
    argv = command("base", Path("/into"), Path("/listed"), ['Acquire::Retries "3"'])
    assert argv[argv.index("mmdebstrap") - 1] == "--kill-child", "nothing outlives the build"
    assert argv[-3:] == ["bookworm", "/into", "/listed"]
    assert '--aptopt=Acquire::Retries "3"' in argv
    (packages,) = [argument for argument in argv if argument.startswith("--include=")]
    assert {"nodejs", "python3-venv", "git", "sudo"} <= set(packages.removeprefix("--include=").split(","))


@pytest.mark.anyio
async def test_what_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        await DebianBuilder().build("gentoo", tmp_path, print)
    with pytest.raises(Unavailable, match="no Debian archive"):
        await DebianBuilder(DebianSettings(apt_folder=tmp_path)).build("test", tmp_path, print)


# the check


def _root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("dev", "proc", "sys", "etc/ssl", "run", "tmp"):
        (root / folder).mkdir(parents=True)
    (root / "etc/hosts").write_text("")
    return root


def test_a_sane_root_passes(tmp_path: Path) -> None:
    check_root(_root(tmp_path))


@pytest.mark.parametrize("folder", ["dev", "proc", "sys", "etc", "run"])
def test_a_link_where_a_runtime_mounts_is_refused(tmp_path: Path, folder: str) -> None:
    root, outside = _root(tmp_path), tmp_path / "outside"
    outside.mkdir()
    for target in (str(outside), "/dev", "../outside", "missing", "usr"):
        there = root / folder
        shutil.rmtree(there) if there.is_dir() and not there.is_symlink() else there.unlink(missing_ok=True)
        with pytest.raises(InvalidArgument, match="no folder"):
            check_root(root)
        there.symlink_to(target)
        with pytest.raises(InvalidArgument, match=folder):
            check_root(root)
        assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / "etc/resolv.conf").symlink_to("/etc/shadow"),
        lambda root: (root / "etc/hostname").mkdir(),
        lambda root: (root / ".sandkeep").symlink_to("/"),
        lambda root: (root / ".sandkeep").write_text(""),
        lambda root: (root / "dev/shm").symlink_to("/"),
        lambda root: (root / "tmp").rmdir() or (root / "tmp").symlink_to("/tmp"),
        lambda root: os.mkfifo(root / "etc/passwd"),
        lambda root: (root / "sys/fs").write_text(""),
    ],
)
def test_other_traps_are_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    root = _root(tmp_path)
    spoil(root)
    with pytest.raises(InvalidArgument):
        check_root(root)


def test_a_root_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(_root(tmp_path))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "link", tmp_path / "file", tmp_path / "none"):
        with pytest.raises(InvalidArgument):
            check_root(path)


def test_settling_follows_no_link(tmp_path: Path) -> None:
    root, outside = _root(tmp_path), tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")
    (root / "etc/apt/sources.list.d").mkdir(parents=True)
    (root / "etc/resolv.conf").symlink_to(outside / "file")
    (root / "tmp/lure").symlink_to(outside)
    (root / "var/lib/apt").mkdir(parents=True)
    (root / "var/log").symlink_to(outside)
    settle(root, "sources")
    assert (outside / "file").read_text() == "stays"
    assert (root / "etc/resolv.conf").read_text() == ""
    assert list((root / "tmp").iterdir()) == []
    check_root(root)


@pytest.mark.long
@pytest.mark.requires("mmdebstrap")
@pytest.mark.anyio
async def test_the_small_recipe_builds(tmp_path: Path) -> None:
    root, heard = tmp_path / "root", list[str]()
    root.mkdir()
    await DebianBuilder().build("test", root, heard.append)
    assert any("installing" in line for line in heard)
    assert "user:x:1000:1000:" in (root / "etc/passwd").read_text()
    assert stat.S_IMODE((root / "etc/sudoers.d/user").stat().st_mode) == 0o440
    assert (root / "etc/machine-id").read_bytes() == (root / "etc/resolv.conf").read_bytes() == b""
    assert not (root / "etc/hostname").exists()
    assert (root / "home/user/.bashrc").stat().st_uid == 1000
    assert (root / "usr/bin/python3").is_symlink()
    for folder in ("dev", "proc", "run", "tmp", "var/log"):
        assert list((root / folder).iterdir()) == [], folder
