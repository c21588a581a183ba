"""Settings of one instance: a TOML file, then environment variables SANDKEEP_<NAME>, then flags.

The file is /etc/sandkeep/<instance>.toml; setup writes it, people may edit it. Every setting has a default that works.
"""

import hashlib
import os
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sandkeep.domain.errors import InvalidArgument, PermissionDenied
from sandkeep.domain.names import check_name
from sandkeep.domain.quantities import MIB, parse_duration, parse_size

DEFAULT = "default"
CONFIG_FOLDER = Path(os.environ.get("SANDKEEP_CONFIG_FOLDER", "/etc/sandkeep"))


class Settings(BaseModel):
    """Descriptions here are the settings reference."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True
    )  # database_url may have a password

    instance: str = Field(DEFAULT, description="Name of the instance; two instances on a host never touch each other.")
    host: str = Field("127.0.0.1", description="Address that the server listens on.")
    port: int = Field(0, description="Port that the server listens on; 0: 7777 for `default`, derived for others.")
    data_folder: Path = Field(Path(), description="Database, records, pool. Default /var/lib/sandkeep/<instance>.")
    run_folder: Path = Field(Path(), description="Sockets, pid files, live state. Default /run/sandkeep/<instance>.")
    log_folder: Path = Field(Path(), description="Logs of the daemons. Default /var/log/sandkeep/<instance>.")
    prefix: str = Field("", description="Begins every name on the host: links, nft tables, machines.")
    address_range: IPv4Network = Field(
        IPv4Network("0.0.0.0/32"), description="Addresses of the sandboxes on the host's side, one each."
    )
    dns_port: int = Field(0, description="Where the guests' resolver listens on the gateway address.")
    user: str = Field("sandkeep", description="System user of the server and the resolver.")
    database_url: str = Field(
        "",
        repr=False,
        description="The server's database: `postgresql://USER@HOST/NAME`; empty: SQLite in the data folder. "
        "[How to](../howto/database.md).",
    )
    database_password_file: Path | None = Field(
        None, description="File with the password for database_url, readable by `user`; or put it into the URL."
    )
    disk_driver: Literal["auto", "btrfs", "dir"] = Field(
        "auto", description="btrfs: hard limits and snapshots in milliseconds; dir: plain folders, no limits."
    )
    pool_size: int | None = Field(
        None, description="Bytes of the pool file; default half the free space, at most 64 GiB."
    )
    pool_device: Path | None = Field(None, description="A block device for the pool, instead of a file.")
    pool_sparse: bool = Field(False, description="Do not allocate the pool file: for tests.")
    runsc: Path | None = Field(None, description="The gVisor binary; setup finds or fetches one.")
    runc: Path | None = Field(
        None, description="The runc binary; default: the first in /usr/sbin, /usr/bin and below /usr/local."
    )
    gvisor_platform: Literal["auto", "ptrace", "systrap"] = Field(
        "auto", description="How gVisor intercepts system calls."
    )
    memory_overcommit: float = Field(4.0, gt=0, le=64, description="How often the host's RAM may be promised.")
    memory_reserve: int = Field(512 * MIB, description="Bytes of RAM that admission keeps free.")
    pool_reserve: int = Field(256 * MIB, description="Bytes of the pool that admission keeps free.")
    extra_ca: Path | None = Field(None, description="PEM file of certificate authorities that guests shall trust.")
    http_proxy: str = Field("", description="HTTP proxy that guests are told of (http_proxy, https_proxy).")
    no_proxy: str = Field("", description="Names that guests reach without the proxy.")
    dns_rate: float = Field(100.0, gt=0, description="DNS queries per second and sandbox.")
    resolv_conf: Path = Field(Path("/etc/resolv.conf"), description="Whose resolvers answer for the guests.")
    boot_deadline: float = Field(30.0, gt=0, description="Seconds for an agent to answer after its boot.")
    watchdog: float = Field(
        60.0,
        ge=0,
        description="Seconds (or `2m`) without a sign of life after which a daemon is killed and started again; `off`: never.",
    )
    archive_url: str = Field(
        "",
        description="The object store that archives go to: `s3://BUCKET/FOLDER`, `gs://...`, `az://...`, or a folder of this "
        "host; empty: `archive` in the data folder. [How to](../howto/archive.md).",
    )
    archive_options: Path | None = Field(
        None,
        description="TOML file with what the object store needs (endpoint, region, access_key_id, secret_access_key, ...); "
        "only root may read it.",
    )
    archive_verify_every: float = Field(
        86_400.0,
        ge=0,
        description="Seconds (or `12h`) after which an archive that chance picks is restored into a scratch place and compared; "
        "`off`: never. [How to](../howto/archive.md).",
    )
    max_sandboxes: int = Field(0, ge=0, description="How many sandboxes a project may have; 0: as many as fit.")
    max_creates: int = Field(0, ge=0, description="How many sandboxes a project may create per minute; 0: any number.")
    max_requests: float = Field(
        0.0, ge=0, le=100_000, description="How many requests per second each API key may make; 0: any number."
    )
    max_strangers: int = Field(
        30, ge=0, description="How many different unknown API keys per minute one address may show; 0: any number."
    )
    events_keep_days: float = Field(90.0, gt=0, description="Days after which events are removed.")
    events_keep_count: int = Field(
        1_000_000, gt=0, description="How many events are kept; above that the oldest are removed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What the daemons log.")

    @field_validator("pool_size", "memory_reserve", "pool_reserve", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        return _parsed(parse_size, value)

    @field_validator("archive_verify_every", "watchdog", mode="before")
    @classmethod
    def _durations_or_off(cls, value: Any) -> Any:
        return 0.0 if value == "off" else _parsed(parse_duration, value)

    @field_validator("boot_deadline", mode="before")
    @classmethod
    def _durations(cls, value: Any) -> Any:
        return _parsed(parse_duration, value)

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: dict[str, Any]) -> dict[str, Any]:
        instance = check_name(str(values.get("instance", DEFAULT)), "instance")
        derived = derive(instance)
        return {**derived, **{key: value for key, value in values.items() if value not in (None, "", 0, "0")}}

    @property
    def database(self) -> Path:
        """Where SQLite's file is, if there is no database_url."""
        return self.data_folder / "server" / "sandkeep.db"

    @property
    def node_folder(self) -> Path:
        return self.data_folder / "node"

    @property
    def pool_folder(self) -> Path:
        return self.data_folder / "pool"

    @property
    def pool_image(self) -> Path:
        return self.data_folder / "pool.img"

    @property
    def agents_folder(self) -> Path:
        return self.data_folder / "agents"

    @property
    def builds_folder(self) -> Path:
        return self.data_folder / "builds"

    @property
    def archive_folder(self) -> Path:
        """Where archives are, if archive_url names no other place."""
        return self.data_folder / "archive"

    @property
    def runner_socket(self) -> Path:
        return self.run_folder / "runner.sock"

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host
        return f"http://{host}:{self.port}"


def derive(instance: str) -> dict[str, Any]:
    """What follows from the name alone; two names give distinct values but for accidents, which setup meets."""
    mark = int.from_bytes(hashlib.sha256(instance.encode()).digest()[:4])
    default = instance == DEFAULT
    return {
        "instance": instance,
        "port": 7777 if default else 20000 + mark % 10000,
        "dns_port": 5300 if default else 30000 + mark % 10000,
        "prefix": "sk" if default else f"s{mark % 36**4:04x}"[:6].replace("v", "w"),
        "address_range": "10.210.0.0/16" if default else f"10.{211 + mark % 40}.{mark // 64 % 16 * 16}.0/20",
        "data_folder": f"/var/lib/sandkeep/{instance}",
        "run_folder": f"/run/sandkeep/{instance}",
        "log_folder": f"/var/log/sandkeep/{instance}",
    }


_SECRET = frozenset({"database_url", "http_proxy"})
"""Settings that may hold a password: theirs is the file, which only root and the server's user read."""


def handed_down() -> dict[str, str]:
    """The variables of our environment that daemons get: everybody who may look at a process sees those."""
    names = {f"SANDKEEP_{key.upper()}" for key in Settings.model_fields if key not in _SECRET}
    return {name: os.environ[name] for name in (*sorted(names), *_PLACES) if name in os.environ}


_PLACES = ("SANDKEEP_CONFIG_FOLDER", "SANDKEEP_AGENT")


def redacted(settings: Settings) -> dict[str, Any]:
    """All settings as they are, without what may be a secret."""
    values = settings.model_dump(mode="json")
    return {key: "(set)" if key in _SECRET and value else value for key, value in values.items()}


def secrets_of(settings: Settings) -> list[str]:
    """Those values, and the password alone of what is an address."""
    values = [str(value) for key in _SECRET if (value := getattr(settings, key))]
    return [*values, *(password for value in values if (password := urlsplit(value).password))]


def config_file(instance: str) -> Path:
    return CONFIG_FOLDER / f"{instance}.toml"


def load(instance: str | None = None, **overrides: Any) -> Settings:
    """File, then environment, then `overrides`. Raises InvalidArgument with the file's or variable's name."""
    name = instance or os.environ.get("SANDKEEP_INSTANCE") or DEFAULT
    check_name(name, "instance")
    path = config_file(name)
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = tomllib.loads(path.read_text())
        except PermissionError as error:
            raise PermissionDenied(f"{path} is not yours to read", hint="run it with sudo") from error
        except (tomllib.TOMLDecodeError, OSError) as error:
            raise InvalidArgument(
                f"{path} cannot be read: {error}", hint="mend or remove it, then: sandkeep setup"
            ) from error
    environment = {
        key: os.environ[variable]
        for key in Settings.model_fields
        if (variable := f"SANDKEEP_{key.upper()}") in os.environ and key != "instance"
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(**{**values, **environment, **given, "instance": name})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if key in given:
            place = f"--{key.replace('_', '-')}"
        elif key in environment:
            place = f"SANDKEEP_{key.upper()}"
        else:
            place = str(path)
        if first["type"] == "extra_forbidden":
            told = f"there is no setting {key}"
        else:
            told = f"setting {key}: {first['msg'].removeprefix('Value error, ')}"
        raise InvalidArgument(told, hint=f"it comes from {place}", field=key) from error


def _parsed(parse: Callable[[str], int | float], value: Any) -> Any:
    """Of text; pydantic names the setting in a ValueError, and in nothing else."""
    try:
        return parse(value) if isinstance(value, str) else value
    except InvalidArgument as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
