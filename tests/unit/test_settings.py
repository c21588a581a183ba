"""Settings: one order of precedence, one instance never meets another, errors that name the place."""

from pathlib import Path

import pytest

from sandkeep.app import settings
from sandkeep.app.wiring import cgroup_parent
from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.quantities import GIB


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "CONFIG_FOLDER", tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(f"SANDKEEP_{name.upper()}", raising=False)
    return tmp_path


def test_defaults() -> None:
    found = settings.load()
    assert (found.instance, found.host, found.port, found.prefix) == ("default", "127.0.0.1", 7777, "sk")
    assert found.data_folder == Path("/var/lib/sandkeep/default")
    assert found.memory_overcommit == 4


def test_flags_before_environment_before_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "default.toml").write_text('port = 1001\ndns_rate = 7.0\npool_size = "3GiB"\n')
    assert settings.load().port == 1001
    monkeypatch.setenv("SANDKEEP_PORT", "1002")
    assert settings.load().port == 1002
    assert settings.load(port=1003).port == 1003
    assert settings.load().dns_rate == 7
    assert settings.load().pool_size == 3 * GIB


def test_the_instance_comes_from_the_flag_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDKEEP_INSTANCE", "second")
    assert settings.load().instance == "second"
    assert settings.load("third").instance == "third"


def test_instances_share_nothing() -> None:
    one, two = settings.load("one"), settings.load("two")
    for field in ("port", "dns_port", "prefix", "address_range", "data_folder", "run_folder", "log_folder"):
        values = {getattr(found, field) for found in (one, two, settings.load())}
        assert len(values) == 3, field
    assert not one.address_range.overlaps(two.address_range)
    assert cgroup_parent(one) != cgroup_parent(two)


@pytest.mark.parametrize(
    "text",
    ["port = 'x'", "memory_overcommit = -1", "nonsense = 1", "disk_driver = 'zfs'", "port = ", "pool_size = '-1'"],
)
def test_a_bad_file_is_named(folder: Path, text: str) -> None:
    (folder / "default.toml").write_text(text)
    with pytest.raises(InvalidArgument) as refused:
        settings.load()
    assert str(folder / "default.toml") in refused.value.message + (refused.value.hint or "")


@pytest.mark.parametrize("name", ["../x", "A", "a b", "x" * 60])
def test_a_bad_instance_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        settings.load(name)


def test_a_bad_setting_is_one_line_that_names_it_and_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument) as flag:
        settings.load(address_range="1.2.3")
    assert flag.value.message == "setting address_range: Input is not a valid IPv4 network"
    assert flag.value.hint == "it comes from --address-range"
    monkeypatch.setenv("SANDKEEP_POOL_SIZE", "much")
    with pytest.raises(InvalidArgument, match=r"^setting pool_size: .*'much' is not a size; write bytes") as variable:
        settings.load()
    assert variable.value.hint == "it comes from SANDKEEP_POOL_SIZE"
    monkeypatch.delenv("SANDKEEP_POOL_SIZE")
    (folder / "default.toml").write_text("nonsense = 1")
    with pytest.raises(InvalidArgument, match=r"^there is no setting nonsense$"):
        settings.load()
