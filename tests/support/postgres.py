"""A PostgreSQL server of the tests' own, from Debian's package: in a folder of its own, as an unprivileged user."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.instance import until

PORT = 54329


def programs() -> Path | None:
    """The folder of the newest version's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


class Postgres:
    """`host`: the folder of its socket, in which every local user is trusted. `address` wants `password`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = str(root)
        self.address = f"127.0.0.1:{PORT}"
        self.password = secrets.token_hex(8)
        where = programs()
        assert where is not None
        self._programs = where
        self._account = pwd.getpwnam("nobody")
        self._popen: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator["Postgres"]:
        root = Path(tempfile.mkdtemp(prefix="sandkeep-postgres-", dir="/var/tmp"))
        made = cls(root)
        try:
            os.chown(root, made._account.pw_uid, made._account.pw_gid)
            root.chmod(0o711)
            (root / "password").write_text(made.password)
            os.chown(root / "password", made._account.pw_uid, -1)
            made._run(
                "initdb",
                "-D",
                str(root / "data"),
                "-U",
                "owner",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                f"--pwfile={root / 'password'}",
                "--no-sync",
                "--no-instructions",
            )
            made.start()
            yield made
        finally:
            made.stop()
            shutil.rmtree(root)

    def start(self) -> None:
        """Until it answers. After a kill -9, the children of the one before may take a moment to end."""

        def answers() -> bool:
            if self._popen is None or self._popen.poll() is not None:
                with (self.root / "log").open("ab") as log:
                    self._popen = subprocess.Popen(
                        [str(self._programs / "postgres"), "-D", str(self.root / "data"), "-k", self.host, "-p", str(PORT),
                         "-c", "listen_addresses=127.0.0.1"],
                        user=self._account.pw_uid, group=self._account.pw_gid, extra_groups=[], cwd="/",
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
                    )  # fmt: skip
            ready = ["pg_isready", "-q", "-h", self.host, "-p", str(PORT)]
            return subprocess.run([str(self._programs / ready[0]), *ready[1:]]).returncode == 0

        until(answers, 30, wait=0.05)

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def kill(self) -> None:
        """kill -9 of the postmaster; its children follow by themselves."""
        os.kill(self.pid, signal.SIGKILL)
        assert self._popen is not None
        self._popen.wait(30)

    def stop(self) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGINT)
            self._popen.wait(30)

    def sql(self, text: str, database: str = "postgres") -> str:
        done = self._run("psql", "-h", self.host, "-p", str(PORT), "-U", "owner", "-At", "-c", text, database)
        return done.strip()

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = "d" + secrets.token_hex(6)
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://owner@/{name}?host={self.host}&port={PORT}"

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._account.pw_uid, group=self._account.pw_gid, extra_groups=[], cwd="/",
            capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{program}: {done.stderr}")
        return done.stdout
