"""Where the server is: arguments, then the environment, then the file."""

import json
from pathlib import Path

import pytest

from sandkeep.sdk import config
from sandkeep.sdk.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("SANDKEEP_URL", "SANDKEEP_KEY", "SANDKEEP_INSTANCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_nothing_is_configured() -> None:
    with pytest.raises(ConfigError) as caught:
        config.resolve()
    assert "sandkeep up" in (caught.value.hint or "")


def test_the_first_instance_saved_is_the_default(home: Path) -> None:
    path = config.save_instance("default", "http://127.0.0.1:1/", "sk_1")
    config.save_instance("other", "http://127.0.0.1:2", "sk_2")
    assert path == home / "sandkeep" / "config.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert config.resolve() == config.Address("http://127.0.0.1:1", "sk_1")
    assert config.resolve(instance="other").key == "sk_2"
    assert json.loads(path.read_text())["default"] == "default"
    assert list(path.parent.iterdir()) == [path]


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    config.save_instance("default", "http://a", "sk_file")
    config.save_instance("other", "http://b", "sk_other")
    monkeypatch.setenv("SANDKEEP_INSTANCE", "other")
    assert config.resolve().key == "sk_other"
    monkeypatch.setenv("SANDKEEP_URL", "http://c")
    monkeypatch.setenv("SANDKEEP_KEY", "sk_env")
    assert config.resolve() == config.Address("http://c", "sk_env")
    assert config.resolve("http://d", "sk_arg") == config.Address("http://d", "sk_arg")
    assert config.resolve(key="sk_arg") == config.Address("http://c", "sk_arg")
    assert config.resolve(instance="default").key == "sk_file"


def test_a_key_goes_only_to_its_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    config.save_instance("default", "http://a", "sk_file")
    assert config.resolve(url="http://a/").key == "sk_file"
    with pytest.raises(ConfigError):
        config.resolve(url="http://elsewhere")
    monkeypatch.setenv("SANDKEEP_URL", "http://elsewhere")
    with pytest.raises(ConfigError):
        config.resolve()


def test_wrong_files_and_names(home: Path) -> None:
    config.save_instance("default", "http://a", "sk_file")
    with pytest.raises(ConfigError, match="no instance 'nope'"):
        config.resolve(instance="nope")
    with pytest.raises(ConfigError, match="not an http"):
        config.resolve("ftp://x", "sk")
    (home / "sandkeep" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.resolve()


def test_forget(home: Path) -> None:
    config.save_instance("a", "http://a", "1")
    config.save_instance("b", "http://b", "2")
    assert config.forget_instance("a")
    assert not config.forget_instance("a")
    assert config.resolve().url == "http://b"
    assert config.forget_instance("b")
    assert list(home.iterdir()) == [], "an uninstall leaves no file behind"


def test_forgetting_the_last_leaves_what_is_not_ours(home: Path) -> None:
    path = config.save_instance("a", "http://a", "1")
    (path.parent / "note").touch()
    assert config.forget_instance("a")
    assert list(path.parent.iterdir()) == [path.parent / "note"]


def test_the_key_is_not_shown() -> None:
    assert "sk_secret" not in repr(config.Address("http://a", "sk_secret"))
