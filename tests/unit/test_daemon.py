"""One daemon of a kind per instance: the lock tells."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from sandkeep.app import daemon
from sandkeep.domain.errors import Conflict


def test_there_is_one_of_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_LOCK_WITHIN", 0.1)
    assert daemon.holder(tmp_path, "runner") is None
    with daemon.only_one(tmp_path, "runner"), daemon.only_one(tmp_path, "server"):
        assert daemon.holder(tmp_path, "runner") == os.getpid()
        with (
            pytest.raises(Conflict, match="the runner of this instance runs already"),
            daemon.only_one(tmp_path, "runner"),
        ):
            pass
    assert daemon.holder(tmp_path, "runner") is None


def test_who_holds_the_lock_for_an_instant_keeps_no_daemon_from_starting(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "runner.pid", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    threading.Timer(0.2, os.close, (fd,)).start()
    with daemon.only_one(tmp_path, "runner"):
        assert daemon.holder(tmp_path, "runner") == os.getpid()
