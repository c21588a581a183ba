"""Files of the kernel: short, read and written in one call."""

from pathlib import Path


def read(path: Path) -> str | None:
    """None when it is gone: a machine may end at any moment."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def write(path: Path, value: int | str) -> None:
    with open(path, "w") as file:
        file.write(str(value))


def number(path: Path, key: str | None = None) -> int:
    """The file's number, or that of the line `key NUMBER`; 0 when it is gone or says `max`."""
    text = read(path) or ""
    if key is not None:
        text = next((line.split()[1] for line in text.splitlines() if line.split()[:1] == [key]), "")
    return int(text) if text.isdigit() else 0
