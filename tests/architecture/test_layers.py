"""The house as import-linter sees it, and that no new folder was forgotten in its lists."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import sandkeep

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sandkeep"


def test_imports_point_down_the_page() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


def _contract(identifier: str) -> dict[str, list[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: dict[str, list[str]] = next(
        c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == identifier
    )
    return found


def _folders(where: str) -> set[str]:
    return {f"sandkeep.{where}.{path.parent.name}" for path in (PACKAGE / where).glob("*/__init__.py")}


def test_every_door_and_kind_of_driver_is_in_its_list() -> None:
    assert _folders("edge") - {"sandkeep.edge.gate"} == set(_contract("doors")["modules"])
    assert _folders("drivers") == set(_contract("driver-kinds")["modules"])


def test_modules_stay_small() -> None:
    """Aim for 80 to 250 lines; past 600 a module is split along a real seam."""
    large = {
        str(path.relative_to(ROOT)): lines
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "agent").rglob("*.go")]
        if (lines := path.read_text().count("\n")) > 600
    }
    assert large == {}


def test_every_package_names_its_purpose() -> None:
    without = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if path.stat().st_size and not re.match(r'(#.*\n)*\s*r?"""', path.read_text())
    ]
    assert without == []


def test_version_is_said_once() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["version"] == sandkeep.__version__
