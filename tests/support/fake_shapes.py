"""What the fake server of fake_api.py answers with."""

from typing import Any

from starlette.responses import JSONResponse, Response

NOW = "2026-11-02T10:00:00+00:00"


def answer(**fields: Any) -> dict[str, Any]:
    return {"exit_code": 0, "stdout": "", "stderr": "", "duration": 0.001, "pid": 9, "signal": None} | fields


def page(items: list[dict[str, Any]]) -> Response:
    return JSONResponse({"items": items, "next_cursor": None})


def problem(status: int, code: str, detail: str, **more: Any) -> Response:
    body = {"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code} | more
    return JSONResponse(body, status, media_type="application/problem+json")


def view_of(sandbox_id: str, name: str | None, **fields: Any) -> dict[str, Any]:
    runtime = fields.get("runtime", "gvisor")
    return {
        "id": sandbox_id, "name": name, "project_id": "prj_" + "0" * 20, "template": "base",
        "template_id": "tpl_" + "0" * 20, "runtime": runtime,
        "trust": "trusted code only" if runtime == "runc" else "untrusted code",
        "persistence": "volume", "cpus": 2.0, "memory": 1 << 30, "disk": 8 << 30, "pids": 4096, "env": {},
        "labels": {}, "network": "internet", "ttl": None, "on_expiry": "default", "expires_at": None,
        "pause_or_disk": False, "on_failure": "restart", "failures": 0, "restart_at": None,
        "phase": "running", "hold": None, "reason": "asked", "since": NOW,
        "conditions": [{"kind": "GuestReady", "value": True, "reason": "answers", "at": NOW}],
        "created_at": NOW, "updated_at": NOW,
    } | fields  # fmt: skip


def snapshot_of(snapshot_id: str, sandbox_id: str, name: str | None, **fields: Any) -> dict[str, Any]:
    return {
        "id": snapshot_id, "sandbox_id": sandbox_id, "project_id": "prj_" + "0" * 20, "name": name, "kind": "disk",
        "tags": [], "parent": None, "held": 0.012, "reason": "asked", "created_at": NOW,
    } | fields  # fmt: skip


def timeline_of(sandbox_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "sandbox_id": sandbox_id, "every": None, "kind": "disk", "on_exit": False, "on_out_of_memory": False,
        "on_crash": False, "keep_last": 0, "keep_hourly": 0, "keep_daily": 0, "keep_weekly": 0, "keep_monthly": 0,
        "keep_tags": [], "min_age": 0, "budget": None, "asked_too": False, "next_at": None,
    } | fields  # fmt: skip


def template(name: str, phase: str) -> dict[str, Any]:
    return {
        "id": "tpl_" + "1" * 20, "name": name, "project_id": "prj_" + "0" * 20, "phase": phase, "reason": "",
        "parent": None, "steps": [], "size": 1 << 20, "log": "", "created_at": NOW,
    }  # fmt: skip


def entry(path: str, kind: str, size: int) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    return {
        "name": name, "type": kind, "path": path, "size": size, "mode": 0o644, "permissions": "-rw-r--r--",
        "owner": "user", "group": "user", "modifiedTime": "2026-01-02T03:04:05.678Z",
    }  # fmt: skip
