"""Typed ids: a three-letter prefix, an underscore, 20 lower-case letters and digits. Always the same length."""

import re
import secrets
from enum import StrEnum

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_BODY = 20
_PATTERN = re.compile(rf"[a-z]{{3}}_[a-z0-9]{{{_BODY}}}")


class IdKind(StrEnum):
    SANDBOX = "sbx"
    TEMPLATE = "tpl"
    VOLUME = "vol"
    SNAPSHOT = "snp"
    PROJECT = "prj"
    SESSION = "ses"
    OPERATION = "opr"
    KEY = "key"
    EVENT = "evt"
    GENERATION = "gen"


def new_id(kind: IdKind) -> str:
    """A fresh id: 103 random bits."""
    return f"{kind}_" + "".join(secrets.choice(ALPHABET) for _ in range(_BODY))


def is_id(text: str, kind: IdKind | None = None) -> bool:
    return bool(_PATTERN.fullmatch(text)) and (kind is None or text.startswith(f"{kind}_"))


def body(identifier: str) -> str:
    """The 20 characters after the prefix: what host-side names are made of."""
    return identifier.split("_", 1)[1]
