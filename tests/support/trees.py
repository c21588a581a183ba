"""A tree with all that a disk can hold, and what a tree is, for comparison."""

import os
import stat
from pathlib import Path

CAPABILITY = bytes.fromhex("0100000202000000000000000000000000000000")
"""security.capability: cap_net_bind... as the kernel keeps it, version 2."""


def fill_tree(root: Path) -> None:
    """As root. Names that are no text, links to everywhere, holes, rights of every sort."""
    root.chmod(0o755)
    (root / "home/deep/er").mkdir(parents=True)
    for number in range(300):
        (root / f"home/small-{number}").write_bytes(os.urandom(number))
    (root / "home/large").write_bytes(os.urandom(2_500_000))
    with (root / "home/holes").open("wb") as file:
        file.write(b"begin")
        file.seek(5 << 20)
        file.write(b"end")
        file.truncate(9 << 20)
    (root / "home/empty").touch()
    (root / "home/zeros").write_bytes(bytes(100_000))
    Path(os.fsdecode(os.fsencode(root) + b"/home/\xff\xfe not text\n")).write_text("odd")
    (root / "home/link").symlink_to("/etc/passwd")
    (root / "home/up").symlink_to("../../../../../../etc/shadow")
    (root / "home/broken").symlink_to("nowhere")
    os.link(root / "home/large", root / "home/deep/same")
    os.link(root / "home/link", root / "home/deep/same-link")
    os.mkfifo(root / "home/pipe", 0o640)
    program = root / "home/program"
    program.write_text("#!/bin/sh\n")
    os.chown(program, 1000, 1001)
    program.chmod(0o6755)
    os.setxattr(program, "user.note", b"kept\0too")
    os.setxattr(root / "home/large", "security.capability", CAPABILITY)
    os.setxattr(root / "home/deep", "user.folder", b"yes")
    private = root / "home/private"
    private.mkdir(mode=0o700)
    (private / "secret").write_text("only its owner's")
    os.chown(private / "secret", 4242, 4242)
    (private / "secret").chmod(0)
    os.chown(private, 4242, 4242)
    private.chmod(0)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    for at, _, names in os.walk(root, topdown=False):
        for name in names:
            os.utime(Path(at, name), ns=(10**18, 10**18 + 123456789), follow_symlinks=False)
        os.utime(at, ns=(10**18, 10**18 + 987654321))


def tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that is worth keeping of it, by path."""
    found, names = {}, dict[tuple[int, int], bytes]()
    for at, folders, files in os.walk(os.fsencode(root)):
        folders.sort()
        files.sort()
        for name in [b".", *folders, *files] if at == os.fsencode(root) else [*folders, *files]:
            path = os.path.join(at, name)
            seen = os.lstat(path)
            relative = os.path.relpath(path, os.fsencode(root))
            one = seen.st_dev, seen.st_ino
            first = names.setdefault(one, relative) if not stat.S_ISDIR(seen.st_mode) else relative
            link = os.readlink(path) if stat.S_ISLNK(seen.st_mode) else b""
            content = b""
            if stat.S_ISREG(seen.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            kept = {}
            if not stat.S_ISLNK(seen.st_mode):
                kept = {n: os.getxattr(path, n) for n in os.listxattr(path) if n.startswith(("user.", "security.cap"))}
            owner = seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, seen.st_rdev
            found[relative] = (*owner, first, link, content, tuple(sorted(kept.items())))
    return found
