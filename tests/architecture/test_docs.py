"""What is not documented does not pass: the generated reference is current, the written pages name what there is."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.routing import BaseRoute, Route, WebSocketRoute

from sandkeep.domain import errors
from sandkeep.domain.event import MEANING, EventKind
from sandkeep.edge.api.app import api_app
from sandkeep.edge.api.document import api_document
from sandkeep.edge.api.routes.bytes import byte_routes
from sandkeep.edge.api.routes.terminal import terminal_routes
from sandkeep.edge.gate.problems import STATUSES
from sandkeep.telemetry import metrics
from sandkeep.telemetry.log import EVENTS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sandkeep"
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = _reference()


def _code() -> str:
    return "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("name", sorted(REFERENCE.PAGES))
def test_the_reference_is_current(name: str) -> None:
    made = REFERENCE.PAGES[name]().rstrip() + "\n"
    assert (ROOT / "docs/reference" / name).read_text() == made, "run: make reference"


def test_every_setting_says_what_it_is() -> None:
    silent = [name for name, field in REFERENCE.Settings.model_fields.items() if not (field.description or "").strip()]
    assert silent == []


def test_every_environment_variable_is_in_the_reference() -> None:
    settings = {f"SANDKEEP_{name.upper()}" for name in REFERENCE.Settings.model_fields}
    internal = {"SANDKEEP_COMPLETE", "SANDKEEP_SANDBOX_ID"}  # click's own, and the agent's
    used = set(re.findall(r"(?<![A-Z_])SANDKEEP_[A-Z]+(?:_[A-Z]+)*", _code()))
    assert used - settings - internal <= set(REFERENCE.OTHER_VARIABLES)


def test_every_error_has_a_status_and_a_line_in_the_tree() -> None:
    known = errors.every_error()
    assert set(STATUSES) == set(known)
    assert [kind.__name__ for kind in known.values() if f"─ {kind.__name__} " not in (errors.__doc__ or "")] == []


def test_every_event_has_a_meaning_and_happens() -> None:
    assert set(MEANING) == set(EventKind)
    told = set(re.findall(r"EventKind\.([A-Z_]+)", _code().replace((SOURCE / "domain/event.py").read_text(), "")))
    assert {kind.name for kind in EventKind} - told == set()


def test_every_log_event_is_logged() -> None:
    logged = set(re.findall(r"""\blog\(\s*"([a-z_]+\.[a-z_]+)\"""", _code()))
    assert logged == set(EVENTS)


def test_every_metric_is_described() -> None:
    described = {name.removesuffix("_total") for name, *_ in metrics.described()}
    assert {family.name for family in metrics._registry.collect()} == described


def _served() -> set[tuple[str, str]]:
    """(method, path) of everything that the server answers; parameters without their names."""
    nobody: Any = None
    routes: list[BaseRoute] = [*byte_routes(nobody), *terminal_routes(nobody)]
    for route in api_app(None, "0").routes:
        included = getattr(route, "original_router", None)
        routes += included.routes if included else [route]
    found = set()
    for route in routes:
        if isinstance(route, WebSocketRoute):
            found.add(("WEBSOCKET", _bare(route.path)))
        elif isinstance(route, Route):
            found |= {(method, _bare(route.path)) for method in (route.methods or set()) - {"HEAD"}}
    return found


def _bare(path: str) -> str:
    return re.sub(r"\{[a-z_]+\}", "{}", path)


def _written() -> set[tuple[str, str]]:
    """The first column of http.md's table: `GET, POST /path; GET /other`."""
    found = set()
    for line in (ROOT / "docs/reference/http.md").read_text().splitlines():
        if not re.match(r"\| [A-Z][A-Za-z, ]+ /", line):
            continue
        for pair in line.split(" | ")[0].removeprefix("| ").split("; "):
            methods, _, path = pair.rpartition(" ")
            found |= {(method.upper(), _bare(path)) for method in methods.split(", ")}
    return found


def test_every_route_is_on_the_page_and_every_line_of_the_page_is_a_route() -> None:
    served, written = _served(), _written()
    assert written - served == set()
    assert served - written == set()


def test_the_document_has_every_json_route_and_no_other_error_shape() -> None:
    document = api_document("0")
    listed = {(method.upper(), _bare(path)) for path, operations in document["paths"].items() for method in operations}
    bare = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")}
    json_routes = {(m, p) for m, p in _served() if not re.search(r"/(terminal|files|tree|agent|export|import)\b", p)}
    assert listed == json_routes - bare
    text = str(document)
    assert "422" not in text
    assert "HTTPValidationError" not in text
    assert document["security"] == [{"bearer": []}]


def _anchors(text: str) -> set[str]:
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        found.add(re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in _anchors(file.read_text())):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_found() -> None:
    """From README over links, every page under docs is reached."""
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        waiting += [(page.parent / link).resolve() for link in links if ":" not in link]
    assert set(PAGES) - reached == set()
