"""A small real HTTP server that speaks docs/reference/http.md, for tests of the SDK and the command line.

It runs in a thread, on the loopback interface. Tests script it: `fail` makes the next answers errors, `programs` says
what processes print, `cut_after` breaks streams. It knows nothing of sandboxes but their views.
"""

import asyncio
import base64
import contextlib
import io
import json
import socket
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from tests.support.fake_shapes import NOW, answer, entry, page, problem, snapshot_of, template, timeline_of, view_of

from sandkeep.lib.connect import END_FLAG, Deframer, frame

KEY = "sk_test"
Event = tuple[str, bytes]


@dataclass
class Program:
    """What a process of the fake prints, in order, and how it ends. `gate`: it waits for it before the end."""

    output: list[Event]
    end: dict[str, Any] = field(default_factory=lambda: {"exitCode": 0, "exited": True, "status": "exit status 0"})
    gate: threading.Event | None = None
    echo: bool = False
    pid: int = 0
    tag: str = ""
    signals: list[Any] = field(default_factory=list)
    stdin: bytearray = field(default_factory=bytearray)
    stdin_closed: threading.Event = field(default_factory=threading.Event)
    message: dict[str, Any] = field(default_factory=dict)
    user: str | None = None

    def ring(self) -> list[tuple[int, str, bytes]]:
        at, found = 0, []
        for stream, data in self.output:
            found.append((at, stream, data))
            at += len(data)
        return found


class FakeApi:
    def __init__(self) -> None:
        self.sandboxes: dict[str, dict[str, Any]] = {}
        self.boots_slowly: threading.Event | None = None
        self.keys: dict[str, str] = {}
        self.snapshots: list[dict[str, Any]] = []
        self.timelines: dict[str, dict[str, Any]] = {}
        self.rollbacks: list[dict[str, Any]] = []
        self.forks: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.failures: list[Callable[[Request], Response | None]] = []
        self.version: dict[str, Any] = {"version": "0.1.0", "api": 1, "oldest_client": "0.1.0", "runner": "0.1.0"}
        self.exec: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: answer(stdout=str(body["command"]) + "\n")
        self.execs: list[dict[str, Any]] = []
        self.programs: list[Program] = []
        self.processes: dict[str, Program] = {}
        self.cut_after: list[int] = []
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = {"/", "/work"}
        self.tree: bytes = tar([])
        self.tree_got: bytes = b""
        self.events: list[dict[str, Any]] = []
        self.heartbeats = 0
        self.terminal: dict[str, Any] = {}
        self.terminal_close: list[int] = []
        self.url = ""

    # Scripting

    def fail(self, status: int, code: str, times: int = 1, headers: dict[str, str] | None = None, **more: Any) -> None:
        """The next `times` calls (the version check aside) get this problem."""
        body = {"type": "about:blank", "title": code, "status": status, "detail": f"scripted {code}", "code": code}
        for _ in range(times):
            self.failures.append(
                lambda _: JSONResponse(body | more, status, headers or {}, media_type="application/problem+json")
            )

    def drop(self, times: int = 1, after: bool = True) -> None:
        """The next calls are carried out (if `after`), but their connection breaks without an answer."""
        self.failures.extend([lambda _: Broken(carry_out=after)] * times)

    def add(self, name: str | None = None, **fields: Any) -> dict[str, Any]:
        view = view_of(f"sbx_{len(self.sandboxes):020d}", name, **fields)
        self.sandboxes[view["id"]] = view
        return view

    def find(self, ref: str) -> dict[str, Any] | None:
        return self.sandboxes.get(ref) or next((v for v in self.sandboxes.values() if v["name"] == ref), None)

    def add_snapshot(self, sandbox: dict[str, Any], name: str | None = None, **fields: Any) -> dict[str, Any]:
        view = snapshot_of(f"snp_{len(self.snapshots):020d}", sandbox["id"], name, **fields)
        self.snapshots.append(view)
        return view

    def find_snapshot(self, sandbox: dict[str, Any], ref: str) -> dict[str, Any] | None:
        own = [view for view in self.snapshots if view["sandbox_id"] == sandbox["id"]]
        return next((view for view in own if ref in (view["id"], view["name"])), None)

    def record(self, kind: str, subject: str) -> None:
        self.events.append(
            {"seq": len(self.events) + 1, "at": NOW, "kind": kind, "subject": subject, "reason": "asked", "data": {}}
        )

    # The application

    def app(self) -> Starlette:
        box = "/v1/sandboxes/{ref}"
        table: list[tuple[str, str, Any]] = [
            ("GET", "/v1/version", self._version),
            ("GET", "/v1/node", self._node),
            ("GET", "/v1/runtimes", self._runtimes),
            ("GET", "/v1/events", self._events),
            ("POST", "/v1/sandboxes", self._create),
            ("GET", "/v1/sandboxes", self._list),
            ("GET", box, self._get),
            ("PATCH", box, self._patch),
            ("DELETE", box, self._delete),
            ("GET", box + "/wait", self._get),
            ("GET", box + "/stats", self._stats),
            ("GET", box + "/logs", self._logs),
            ("GET", box + "/events", self._events),
            ("POST", box + "/heartbeat", self._heartbeat),
            ("GET", box + "/snapshots", self._snapshots),
            ("POST", box + "/snapshots", self._snapshot_create),
            ("GET", box + "/snapshots/{snapshot}", self._snapshot),
            ("DELETE", box + "/snapshots/{snapshot}", self._snapshot_delete),
            ("GET", box + "/browse/list", self._browse),
            ("GET", box + "/timeline", self._timeline),
            ("PUT", box + "/timeline", self._timeline),
            ("POST", box + "/timeline/prune", self._prune),
            ("POST", box + "/rollback", self._rollback),
            ("POST", box + "/fork", self._fork),
            ("POST", box + "/exec", self._exec),
            ("GET", box + "/files", self._file_get),
            ("POST", box + "/files", self._file_put),
            ("GET", box + "/tree", self._tree_get),
            ("PUT", box + "/tree", self._tree_put),
            ("POST", box + "/agent/process.Process/{method}", self._process),
            ("POST", box + "/agent/filesystem.Filesystem/{method}", self._filesystem),
            ("GET", "/v1/templates", self._templates),
            ("POST", "/v1/templates", self._template_build),
            ("GET", "/v1/templates/{ref}", self._template),
            ("GET", "/v1/templates/{ref}/log", self._template_log),
            ("DELETE", "/v1/templates/{ref}", self._nothing),
            ("GET", "/v1/keys", self._keys),
            ("POST", "/v1/keys", self._key_create),
            ("DELETE", "/v1/keys/{ref}", self._nothing),
        ]
        table += [("POST", f"{box}/{verb}", self._verb(verb)) for verb in ("pause", "resume", "stop", "start")]
        routes: list[Any] = [Route(path, self._guarded(done), methods=[method]) for method, path, done in table]
        routes.append(WebSocketRoute(box + "/terminal", self._terminal))
        return Starlette(routes=routes)

    def _guarded(self, done: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            self.headers.append(dict(request.headers))
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return problem(401, "unauthenticated", "no such key")
            failure = None
            if self.failures and done != self._version:
                failure = self.failures.pop(0)(request)
                if failure is not None and not (isinstance(failure, Broken) and failure.carry_out):
                    return failure
            ref = request.path_params.get("ref")
            if ref and request.url.path.startswith("/v1/sandboxes") and self.find(ref) is None:
                return problem(404, "not_found", f"there is no sandbox {ref}")
            point = request.path_params.get("snapshot")
            if point and self.find_snapshot(self._box(request), point) is None:
                return problem(404, "not_found", f"there is no snapshot {point}")
            found: Response = await done(request)
            return failure or found

        return endpoint

    async def _version(self, _: Request) -> Response:
        return JSONResponse(self.version)

    async def _node(self, _: Request) -> Response:
        counts = dict.fromkeys(
            ("memory_total", "memory_available", "memory_promised", "memory_limit", "pool_total", "pool_free",
             "pool_metadata_free", "pool_reserved", "slots_total", "slots_free", "processes_free", "descriptors_free",
             "data_free", "files_free"), 1 << 30,
        )  # fmt: skip
        node = {"node_id": "n1", "version": "0.1.0", "disk_driver": "btrfs", "disk_notes": [], "capacity": counts}
        return JSONResponse(node)

    async def _runtimes(self, _: Request) -> Response:
        def row(name: str, trust: str) -> dict[str, Any]:
            lists = {"persistence": ["ephemeral", "volume"], "holds": ["memory"], "unsupported": {}, "notes": []}
            return {
                "name": name, "available": True, "reason": "", "version": "1", "isolation": "kernel", "trust": trust,
            } | lists  # fmt: skip

        return page([row("gvisor", "untrusted code"), row("runc", "trusted code only")])

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        key = request.headers.get("idempotency-key", "")
        known = self.keys.get(key) if key else None
        if known:
            return JSONResponse(self.sandboxes[known], 201)
        taken = body.get("name") and self.find(body["name"])
        if taken:
            return JSONResponse(taken, 200)
        view = self.add(**{k: v for k, v in body.items() if k not in ("grace", "memory", "disk", "ttl")})
        view["asked"] = body
        self.keys[key] = view["id"]
        while self.boots_slowly and not self.boots_slowly.is_set():
            await asyncio.sleep(0.01)
        return JSONResponse(view, 201)

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        limit, start = int(query.get("limit", 50)), int(query.get("cursor", 0))
        labels = [pair.partition("=") for pair in query.getlist("label")]
        found = [
            view
            for view in self.sandboxes.values()
            if all(view["labels"].get(key) == value for key, _, value in labels)
            and (not query.getlist("phase") or view["phase"] in query.getlist("phase"))
        ]
        limit = min(limit, 3)
        rest = start + limit < len(found)
        return JSONResponse(
            {"items": found[start : start + limit], "next_cursor": str(start + limit) if rest else None}
        )

    async def _get(self, request: Request) -> Response:
        return JSONResponse(self.find(request.path_params["ref"]))

    async def _patch(self, request: Request) -> Response:
        view = self.find(request.path_params["ref"])
        assert view is not None
        view.update({k: v for k, v in (await request.json()).items() if k not in ("memory", "disk")})
        return JSONResponse(view)

    async def _delete(self, request: Request) -> Response:
        view = self.find(request.path_params["ref"])
        assert view is not None
        del self.sandboxes[view["id"]]
        return Response(status_code=204)

    def _verb(self, verb: str) -> Any:
        async def endpoint(request: Request) -> Response:
            view = self.find(request.path_params["ref"])
            assert view is not None
            view["phase"] = {"pause": "paused", "stop": "stopped"}.get(verb, "running")
            body = await request.body()
            view["hold"] = (json.loads(body or b"{}").get("hold") or "disk") if verb == "pause" else None
            return JSONResponse(view)

        return endpoint

    async def _stats(self, request: Request) -> Response:
        figures = {"cpu_seconds": 1.5, "memory": 1 << 20, "memory_limit": 1 << 30, "processes": 3, "disk": 5 << 20}
        return JSONResponse({"sandbox_id": request.path_params["ref"], "disk_limit": 8 << 30} | figures)

    async def _logs(self, _: Request) -> Response:
        return JSONResponse({"text": "agent: up\n"})

    async def _heartbeat(self, _: Request) -> Response:
        self.heartbeats += 1
        return Response(status_code=204)

    async def _nothing(self, _: Request) -> Response:
        return Response(status_code=204)

    async def _events(self, request: Request) -> Response:
        after = int(request.query_params.get("after", 0))
        found = [event for event in self.events if event["seq"] > after]
        if request.query_params.get("follow") != "true":
            return page(found)

        async def stream() -> AsyncIterator[bytes]:
            # Two at a time, then the connection ends: a follower must come back with what it saw last.
            for event in found[:2]:
                yield json.dumps(event).encode() + b"\n\n"

        return StreamingResponse(stream())

    # Snapshots

    def _box(self, request: Request) -> dict[str, Any]:
        found = self.find(request.path_params["ref"])
        assert found is not None
        return found

    async def _snapshots(self, request: Request) -> Response:
        box = self._box(request)
        return page([view for view in self.snapshots if view["sandbox_id"] == box["id"]])

    async def _snapshot_create(self, request: Request) -> Response:
        body, box, key = await request.json(), self._box(request), request.headers["idempotency-key"]
        if key in self.keys:
            return JSONResponse(self.find_snapshot(box, self.keys[key]), 201)
        if body.get("name") and self.find_snapshot(box, body["name"]):
            return problem(409, "already_exists", f"there is a snapshot {body['name']}")
        view = self.add_snapshot(box, **body)
        self.keys[key] = view["id"]
        return JSONResponse(view, 201)

    async def _browse(self, request: Request) -> Response:
        """Each disk has these two folders."""
        folders = {"/": ["etc/", "file"], "/etc/": ["hostname", "hosts", "name:colon"]}
        facts = {"size": 1, "mode": 0o644, "uid": 0, "gid": 0, "modified_at": None, "target": None, "name_base64": None}
        return page(
            [
                {"name": name.rstrip("/"), "type": "directory" if name.endswith("/") else "file", **facts}
                for name in folders.get(request.query_params["path"], [])
            ]
        )

    async def _snapshot(self, request: Request) -> Response:
        return JSONResponse(self.find_snapshot(self._box(request), request.path_params["snapshot"]))

    async def _snapshot_delete(self, request: Request) -> Response:
        view = self.find_snapshot(self._box(request), request.path_params["snapshot"])
        assert view is not None
        self.snapshots.remove(view)
        return Response(status_code=204)

    async def _timeline(self, request: Request) -> Response:
        """Durations and sizes as numbers alone."""
        box = self._box(request)
        if request.method == "PUT":
            self.timelines[box["id"]] = await request.json()
        return JSONResponse(timeline_of(box["id"], **self.timelines.get(box["id"], {})))

    async def _prune(self, request: Request) -> Response:
        """All but the last."""
        body, box = await request.json(), self._box(request)
        own = [view for view in self.snapshots if view["sandbox_id"] == box["id"]]
        items = [{"snapshot": view, "keep": [], "why": "no rule keeps it"} for view in own[:-1]]
        items += [{"snapshot": view, "keep": ["last"], "why": ""} for view in own[-1:]]
        if not body["plan"]:
            self.snapshots = [view for view in self.snapshots if view not in own[:-1]]
        return JSONResponse({"items": items, "done": not body["plan"], "total": 3 << 20, "budget": None})

    async def _rollback(self, request: Request) -> Response:
        body, box = await request.json(), self._box(request)
        if self.find_snapshot(box, body["snapshot"]) is None:
            return problem(404, "not_found", f"there is no snapshot {body['snapshot']}")
        self.rollbacks.append(body)
        return JSONResponse(box)

    async def _fork(self, request: Request) -> Response:
        body, box, key = await request.json(), self._box(request), request.headers["idempotency-key"]
        if key not in self.forks:
            if body.get("snapshot") and self.find_snapshot(box, body["snapshot"]) is None:
                return problem(404, "not_found", f"there is no snapshot {body['snapshot']}")
            name, count = body.get("name"), body["count"]
            names = [f"{name}-{number + 1}" if name and count > 1 else name for number in range(count)]
            made = [self.add(each, runtime=box["runtime"]) for each in names]
            for view in made:
                view["asked"] = body
            self.forks[key] = [view["id"] for view in made]
            while self.boots_slowly and not self.boots_slowly.is_set():
                await asyncio.sleep(0.01)
        items = [self.sandboxes[made] for made in self.forks[key]]
        return JSONResponse({"items": items, "next_cursor": None}, 201)

    # Commands

    async def _exec(self, request: Request) -> Response:
        body = await request.json()
        self.execs.append(body)
        return JSONResponse(self.exec(body))

    async def _process(self, request: Request) -> Response:
        method = request.path_params["method"]
        raw = await request.body()
        if method in ("Start", "Connect"):
            ((_, message),) = Deframer().feed(raw)
        else:
            message = json.loads(raw)
        if method == "Start":
            program = self.programs.pop(0)
            program.pid, program.tag, program.message = 100 + len(self.processes), message["tag"], message
            program.user = request.query_params.get("username")
            self.processes[program.tag] = program
            return self._output(program, 0)
        if method == "List":
            return JSONResponse({"processes": [self._listed(program) for program in self.processes.values()]})
        target = message["process"]
        found = next(
            (p for p in self.processes.values() if p.tag == target.get("tag") or p.pid == target.get("pid")), None
        )
        view = self.find(request.path_params["ref"])
        assert view is not None
        if view["phase"] != "running" and request.query_params.get("no_resume") == "true":
            return problem(409, "conflict", f"the sandbox is {view['phase']}")
        if found is None:
            return JSONResponse({"code": "not_found", "message": "process not found"}, 404)
        if method == "Connect":
            return self._output(found, int(message.get("offset", 0)))
        if method == "SendInput":
            data = base64.b64decode(message["input"].get("stdin") or message["input"].get("pty"))
            found.stdin += data
        elif method == "CloseStdin":
            if found.echo:
                found.output.append(("stdout", bytes(found.stdin)))
            found.stdin_closed.set()
            if found.gate is not None:
                found.gate.set()
        elif method == "SendSignal":
            found.signals.append(message["signal"])
            found.end = {"exitCode": -1, "exited": False, "status": "signal: killed", "signal": 9}
            if found.gate is not None:
                found.gate.set()
        return JSONResponse({})

    @staticmethod
    def _listed(program: Program) -> dict[str, Any]:
        size = sum(len(data) for _, data in program.output)
        return {"config": program.message["process"], "pid": program.pid, "tag": program.tag, "offset": size}

    def _output(self, program: Program, offset: int) -> Response:
        left = self.cut_after.pop(0) if self.cut_after else -1

        async def stream() -> AsyncIterator[bytes]:
            nonlocal left
            sent = offset
            yield frame({"event": {"start": {"pid": program.pid}}})
            while True:
                for at, name, data in program.ring():
                    if at + len(data) <= sent:
                        continue
                    if left == 0:
                        # Ends in the middle of a message, without the end of the stream.
                        yield frame({"event": {"keepalive": {}}})[:7]
                        return
                    left -= 1
                    part = data[max(0, sent - at) :]
                    text = base64.b64encode(part).decode()
                    yield frame({"event": {"data": {name: text, "offset": max(at, sent)}}})
                    sent = at + len(data)
                if program.gate is None or program.gate.is_set():
                    if sent >= sum(len(data) for _, data in program.output):
                        break
                else:
                    await asyncio.sleep(0.01)
            if program.end.get("timeout"):
                yield frame({"error": {"code": "deadline_exceeded", "message": "timed out"}}, END_FLAG)
                return
            yield frame({"event": {"end": program.end}})
            yield frame({}, END_FLAG)

        return StreamingResponse(stream(), media_type="application/connect+json")

    async def _terminal(self, socket: WebSocket) -> None:
        query = socket.query_params
        self.terminal = {"query": query.multi_items(), "resized": [], "typed": self.terminal.get("typed", b"")}
        await socket.accept()
        view = self.find(socket.path_params["ref"])
        if view is None or (query.get("no_resume") == "true" and view["phase"] != "running"):
            name, status, code = ("not_found", 404, 4404) if view is None else ("conflict", 409, 4409)
            told = {"code": name, "status": status, "detail": "as scripted", "hint": "none", "title": name}
            await socket.send_text(json.dumps({"error": told}))
            await socket.close(code)
            return
        await socket.send_text(json.dumps({"started": {"pid": 7}}))
        with contextlib.suppress(Exception):
            if not int(query.get("offset", 0)):
                await socket.send_bytes(b"$ ")
            if self.terminal_close:
                await socket.send_text(json.dumps({"offset": 2}))
                await socket.close(self.terminal_close.pop(0))
                return
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if message.get("bytes"):
                    self.terminal["typed"] += message["bytes"]
                    await socket.send_bytes(message["bytes"])
                    if message["bytes"].endswith(b"exit\r"):
                        await socket.send_text(json.dumps({"exit": {"exit_code": 5, "signal": None}}))
                        await socket.close(1000)
                        return
                elif message.get("text"):
                    told = json.loads(message["text"])
                    if "resize" in told:
                        self.terminal["resized"].append(told["resize"])

    # Files

    async def _file_get(self, request: Request) -> Response:
        path = request.query_params["path"]
        if path not in self.files:
            return JSONResponse({"code": 404, "message": f"path '{path}' does not exist"}, 404)
        return Response(self.files[path], media_type="application/octet-stream")

    async def _file_put(self, request: Request) -> Response:
        self.files[request.query_params["path"]] = await request.body()
        return JSONResponse([])

    async def _tree_get(self, _: Request) -> Response:
        async def stream() -> AsyncIterator[bytes]:
            for at in range(0, len(self.tree), 1000):
                yield self.tree[at : at + 1000]

        return StreamingResponse(stream())

    async def _tree_put(self, request: Request) -> Response:
        self.tree_got = await request.body()
        return JSONResponse({"files": 1, "dirs": 1, "symlinks": 0, "bytes": 1, "skipped": 0})

    async def _filesystem(self, request: Request) -> Response:
        method = request.path_params["method"]
        raw = await request.body()
        if method == "WatchDir":
            changed = {"filesystem": {"name": "a", "type": "EVENT_TYPE_CREATE"}}
            return Response(frame({"start": {}}) + frame(changed) + frame({}, END_FLAG))
        path = json.loads(raw).get("path", "/")
        if method == "Stat":
            if path in self.folders:
                return JSONResponse({"entry": entry(path, "FILE_TYPE_DIRECTORY", 0)})
            if path in self.files:
                return JSONResponse({"entry": entry(path, "FILE_TYPE_FILE", len(self.files[path]))})
            return JSONResponse({"code": "not_found", "message": f"no file {path}"}, 404)
        if method == "ListDir":
            return JSONResponse(
                {"entries": [entry(name, "FILE_TYPE_FILE", len(data)) for name, data in sorted(self.files.items())]}
            )
        if method == "MakeDir":
            if path in self.folders:
                return JSONResponse({"code": "already_exists", "message": "it is there"}, 409)
            self.folders.add(path)
        if method == "Remove":
            self.files.pop(path, None)
        if method == "Move":
            message = json.loads(raw)
            self.files[message["destination"]] = self.files.pop(message["source"])
            return JSONResponse({"entry": entry(message["destination"], "FILE_TYPE_FILE", 0)})
        return JSONResponse({"entry": entry(path, "FILE_TYPE_DIRECTORY", 0)})

    # Templates and keys

    async def _templates(self, _: Request) -> Response:
        return page([template("base", "ready")])

    async def _template_build(self, request: Request) -> Response:
        return JSONResponse(template((await request.json())["name"], "building"), 202)

    async def _template(self, request: Request) -> Response:
        name = request.path_params["ref"]
        return JSONResponse(template(name, "failed" if name == "bad" else "ready"))

    async def _template_log(self, _: Request) -> Response:
        return Response("step 1\nstep 2\n", media_type="text/plain")

    async def _keys(self, _: Request) -> Response:
        return page([{"id": "key_1", "name": "ci", "prefix": "sk_ab", "created_at": NOW}])

    async def _key_create(self, request: Request) -> Response:
        name = (await request.json())["name"]
        return JSONResponse(
            {"id": "key_2", "name": name, "prefix": "sk_cd", "created_at": NOW, "secret": "sk_cdef"}, 201
        )


class Broken(Response):
    """Closes the connection instead of answering."""

    def __init__(self, carry_out: bool) -> None:
        super().__init__()
        self.carry_out = carry_out

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # A body shorter than announced: uvicorn closes the connection, and the client sees it break.
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"x", "more_body": False})


def tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar stream of these members, hostile ones too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@contextlib.contextmanager
def serve(api: FakeApi, port: int = 0) -> Iterator[FakeApi]:
    """Run it until the block ends; `api.url` says where."""
    listener = socket.create_server(("127.0.0.1", port))
    api.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # uvicorn's own websockets driver warns about deprecations; wsproto comes with the SDK anyway.
    config = uvicorn.Config(api.app(), log_level="critical", lifespan="off", ws="wsproto", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
