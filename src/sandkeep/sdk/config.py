"""Where the server is and which key opens it: arguments, then the environment, then the configuration file.

The file is `$XDG_CONFIG_HOME/sandkeep/config.json` (default ~/.config/sandkeep/config.json), mode 0600:
`{"instances": {"default": {"url": "http://127.0.0.1:7700", "key": "sk_..."}}, "default": "default"}`.
"""

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sandkeep.sdk.errors import ConfigError

URL_VARIABLE = "SANDKEEP_URL"
KEY_VARIABLE = "SANDKEEP_KEY"
INSTANCE_VARIABLE = "SANDKEEP_INSTANCE"


@dataclass(frozen=True)
class Address:
    """A server and the key for it. The key never shows in a repr."""

    url: str
    key: str = field(repr=False)

    @property
    def loopback(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        return host == "localhost" or host.startswith("127.") or host == "::1"


def config_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    return (Path(base) if base else Path.home() / ".config") / "sandkeep" / "config.json"


def load_config(path: Path | None = None) -> dict[str, Any]:
    """The configuration, empty when there is no file. Raises ConfigError for one that cannot be read."""
    path = path or config_path()
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return {"instances": {}, "default": None}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="repair or remove that file") from error
    if not isinstance(config, dict) or not isinstance(config.get("instances", {}), dict):
        raise ConfigError(f"{path} is not a Sandkeep configuration", hint="repair or remove that file")
    config.setdefault("instances", {})
    config.setdefault("default", None)
    return config


def save_instance(name: str, url: str, key: str, *, path: Path | None = None) -> Path:
    """Record an instance; the first one becomes the default. Replaces the file all or nothing. Raises OSError."""
    path = path or config_path()
    config = load_config(path)
    config["instances"][name] = {"url": url, "key": key}
    if config["default"] not in config["instances"]:
        config["default"] = name
    _write(path, config)
    return path


def forget_instance(name: str, *, path: Path | None = None) -> bool:
    """Remove an instance from the file, and the file when it was the last one; False if it was not there."""
    path = path or config_path()
    config = load_config(path)
    if config["instances"].pop(name, None) is None:
        return False
    if not config["instances"]:
        path.unlink()
        with contextlib.suppress(OSError):  # something else is in there
            path.parent.rmdir()
        return True
    if config["default"] == name:
        config["default"] = next(iter(sorted(config["instances"])), None)
    _write(path, config)
    return True


def resolve(url: str | None = None, key: str | None = None, instance: str | None = None) -> Address:
    """The address to use. An instance named in so many words wins over SANDKEEP_URL and SANDKEEP_KEY.

    Raises ConfigError when no server or no key can be found.
    """
    if instance is None:
        url = url or os.environ.get(URL_VARIABLE) or None
        key = key or os.environ.get(KEY_VARIABLE) or None
    if url is None or key is None:
        found = _instance(instance)
        # A key is sent only to the server that it was saved for.
        if url is None or url.rstrip("/") == str(found.get("url", "")).rstrip("/"):
            url, key = url or found.get("url"), key or found.get("key")
    if not url:
        raise ConfigError(
            "no Sandkeep server is configured",
            hint=f"run `sandkeep up` as root; as another user, get a key from whom did that (`sandkeep key create NAME`), "
            f"and set {URL_VARIABLE} and {KEY_VARIABLE}",
        )
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{url!r} is not an http or https URL", hint=f"check {URL_VARIABLE}")
    if not key:
        raise ConfigError(f"no key for {url}", hint=f"set {KEY_VARIABLE}, or make one with `sandkeep key create`")
    return Address(url.rstrip("/"), key)


def _instance(name: str | None) -> dict[str, Any]:
    config = load_config()
    wanted = name or os.environ.get(INSTANCE_VARIABLE) or config["default"] or "default"
    found = config["instances"].get(wanted)
    if isinstance(found, dict):
        return found
    if name or os.environ.get(INSTANCE_VARIABLE):
        known = ", ".join(sorted(config["instances"])) or "none"
        raise ConfigError(f"no instance {wanted!r} in {config_path()}", hint=f"known instances: {known}")
    return {}


def _write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # mkstemp makes the file 0600 from its first byte on.
    fd, fresh = tempfile.mkstemp(prefix=".config-", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(config, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(fresh).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(fresh).unlink()
        raise
