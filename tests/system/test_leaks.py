"""Cycles of create, exec, pause, resume and delete leave nothing more on the host than was there before."""

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import SandkeepError
from support.census import quota_groups, same_again, settled_census
from support.instance import Instance, until
from torture.soak import cycle, run_piece, slope

SHORT = {"gvisor": 50, "runc": 250}
_GROWTH = 20_000
"""Bytes a cycle that a daemon may seem to grow by over so short a time; a leaked task or connection is more."""


def sweep(instance: Instance) -> None:
    instance.kill("runner")
    instance.ensure_up()
    until(lambda: quota_groups(instance) == [], 30, wait=0.5)


def test_cycles_leave_nothing(client: Client, instance: Instance, runtime: str) -> None:
    """Short ones, many: what each leaves behind adds up. A daemon that grew grows again when it keeps something of each."""
    for _ in range(2):
        piece = run_piece(instance, client, runtime, SHORT[runtime], short=True)
        assert (piece.leaked, piece.what) == (0, "")
        if max(piece.server, piece.runner) < _GROWTH:
            break
    assert piece.server < _GROWTH
    assert piece.runner < _GROWTH
    sweep(instance)


@pytest.mark.parametrize("runtime", ["gvisor", pytest.param("runc", marks=pytest.mark.long)])
def test_whole_lives_leave_nothing(client: Client, instance: Instance, runtime: str) -> None:
    piece = run_piece(instance, client, runtime, 4)
    assert (piece.leaked, piece.what) == (0, "")


@pytest.mark.long
def test_a_hundred_cycles_leave_nothing(client: Client, instance: Instance, runtime: str) -> None:
    piece = run_piece(instance, client, runtime, 100)
    assert (piece.leaked, piece.what) == (0, "")
    sweep(instance)


def test_a_slope_is_seen() -> None:
    assert slope([(n, 5000 + 300 * n) for n in range(0, 100, 10)]) == pytest.approx(300)
    assert slope([(n, 5000) for n in range(0, 100, 10)]) == pytest.approx(0)


def test_failed_creations_leave_nothing(client: Client, instance: Instance, runtime: str) -> None:
    cycle(client, runtime)
    before = settled_census(instance)
    bad = [
        {"template": "none-such"},
        {"memory": "4TiB"},
        {"persistence": "volume", "commit": "manual"},
        {"cpus": -1},
        {"name": "../x"},
        {"memory": "64MiB", "disk": "64MiB", "pids": 1},
    ]
    for options in bad:
        with pytest.raises(SandkeepError):
            Sandbox.create(**{"template": "test", "runtime": runtime, "client": client, **options})  # type: ignore[arg-type]
    same_again(instance, before)
