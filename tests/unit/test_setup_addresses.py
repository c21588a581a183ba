"""Where the range that follows from an instance's name is in use on the host, setup takes the next that is not."""

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from sandkeep.app import settings as settings_module
from sandkeep.app.settings import Settings
from sandkeep.app.setup import host
from sandkeep.domain.errors import Conflict
from sandkeep.drivers.network.host import OverlappingRoute, find_overlaps
from sandkeep.drivers.network.layout import NetworkSettings
from sandkeep.drivers.network.rtnetlink import Route


def uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *networks: str) -> None:
    """The host has these behind a bridge of somebody's."""
    routes = [Route(IPv4Network(network), 7) for network in networks]

    def found(network: NetworkSettings) -> list[OverlappingRoute]:
        return find_overlaps(routes, {7: "docker0"}, network)

    monkeypatch.setattr(host, "overlapping_routes", found)
    monkeypatch.setattr(settings_module, "CONFIG_FOLDER", tmp_path)


def chosen(settings: Settings, **asked: Any) -> tuple[str, list[str]]:
    said: list[str] = []
    return str(host._with_free_addresses(settings, asked, said.append).address_range), said


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        ([], "10.210.0.0/16"),
        (["192.168.0.0/16"], "10.210.0.0/16"),
        (["10.210.3.0/24"], "10.211.0.0/16"),
        (["10.210.3.0/24", "10.211.0.0/16", "10.212.1.1/32"], "10.213.0.0/16"),
        (["10.210.0.0/15", "10.224.0.0/11", "10.212.0.0/14", "10.216.0.0/13"], "10.192.0.0/16"),
    ],
)
def test_the_next_free_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, networks: list[str], expected: str
) -> None:
    uses(monkeypatch, tmp_path, *networks)
    found, said = chosen(Settings())
    assert found == expected
    assert bool(said) == (expected != "10.210.0.0/16")
    assert all(expected in line and "docker0" in line for line in said)


def test_what_somebody_chose_is_not_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uses(monkeypatch, tmp_path, "10.210.3.0/24", "10.64.0.0/16")
    with pytest.raises(Conflict, match="docker0"):
        chosen(Settings(), address_range="10.210.0.0/16")
    with pytest.raises(Conflict, match="docker0"):
        chosen(Settings(address_range=IPv4Network("10.64.0.0/16")))
    (tmp_path / "default.toml").write_text('address_range = "10.210.0.0/16"\n')
    with pytest.raises(Conflict, match="docker0"):
        chosen(Settings())


def test_a_host_that_uses_all_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uses(monkeypatch, tmp_path, "10.0.0.0/8")
    with pytest.raises(Conflict, match=r"10\.0\.0\.0/8 through docker0"):
        chosen(Settings())


@pytest.mark.parametrize("name", ["default", "one", "two", "lab-3", "t5d6g39x1"])
def test_every_derived_range_is_among_those(name: str) -> None:
    first = Settings(instance=name).address_range
    following = list(host.ranges_after(first))
    assert first not in following
    assert len(set(following)) == len(following) == 2 ** (first.prefixlen - 10) - 1
