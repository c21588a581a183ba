"""Names that people give, and labels: what is allowed."""

import re

from sandkeep.domain.errors import InvalidArgument

MAX_NAME = 40
NAME_PATTERN = r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

MAX_LABELS, MAX_LABEL_VALUE = 64, 1024
MAX_ENV, MAX_ENV_BYTES = 256, 64 << 10


def check_name(name: str, what: str = "name") -> str:
    if not _NAME.fullmatch(name) or "--" in name:
        raise InvalidArgument(
            f"{what} {name!r} is not valid",
            hint="use 1 to 40 lower-case letters, digits and single dashes, beginning and ending with a letter or digit",
            field=what,
        )
    return name


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"{len(labels)} labels are more than {MAX_LABELS}", field="labels")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidArgument(
                f"label key {key[:80]!r} is not valid",
                hint="use up to 63 letters, digits and . _ / - between letters or digits",
                field="labels",
            )
        if len(value) > MAX_LABEL_VALUE or not value.isprintable():
            raise InvalidArgument(
                f"the value of label {key} is not printable or longer than {MAX_LABEL_VALUE}", field="labels"
            )
    return labels


def check_env(env: dict[str, str]) -> dict[str, str]:
    if len(env) > MAX_ENV or sum(len(k) + len(v) for k, v in env.items()) > MAX_ENV_BYTES:
        raise InvalidArgument(
            f"the environment is above {MAX_ENV} variables or {MAX_ENV_BYTES} characters",
            hint="put large values into a file in the sandbox",
            field="env",
        )
    for key, value in env.items():
        if not _ENV_KEY.fullmatch(key):
            raise InvalidArgument(f"environment variable name {key[:80]!r} is not valid", field="env")
        if "\0" in value:
            raise InvalidArgument(f"environment variable {key} contains a NUL character", field="env")
    return env


def check_user(user: str) -> str:
    if not _USER.fullmatch(user):
        raise InvalidArgument(f"user name {user[:40]!r} is not valid", field="user")
    return user
