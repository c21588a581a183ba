"""Sizes and durations as people write them, and as the code keeps them: bytes and seconds."""

import re

from sandkeep.domain.errors import InvalidArgument

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?B?)?|B)?", re.IGNORECASE | re.ASCII)
_UNIT = {"K": KIB, "M": MIB, "G": GIB, "T": TIB}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(value: int | str, field: str = "size") -> int:
    """Bytes of `512MiB`, `1G`, `1.5 GiB` or a number of bytes. K, M, G, T count in 1024. Raises InvalidArgument."""
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip()) if len(value) <= 32 else None
    if not match:
        raise InvalidArgument(
            f"{field} {value[:40]!r} is not a size",
            hint="write bytes, or a number with K, M, G or T: 512MiB",
            field=field,
        )
    return int(float(match[1]) * _UNIT.get((match[2] or "").upper(), 1))


def parse_duration(value: float | str, field: str = "duration") -> float:
    """Seconds of `90`, `30s`, `5m`, `1h30m`, `7d`. Raises InvalidArgument."""
    if not isinstance(value, str):
        return float(value)
    text = value.strip().lower()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text):
        return float(text)
    parts = _DURATION_PART.findall(text) if len(text) <= 32 else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument(
            f"{field} {value[:40]!r} is not a duration", hint="write seconds, or like 30s, 5m, 1h30m, 7d", field=field
        )
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def format_size(count: int) -> str:
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{count} B"


def counted(count: int, one: str, many: str = "") -> str:
    """1 file, 2 files; `many` where an s does not do."""
    return f"{count} {one if count == 1 else many or one + 's'}"
