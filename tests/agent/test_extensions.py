"""What the agent does beyond E2B: /exec, offsets, trees, lifecycle, limits."""

import base64
import http.client
import io
import json
import socket
import struct
import tarfile
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from agent_process import TOKEN, Agent


class Stream:
    """A raw Connect stream; reads one event at a time."""

    opened: ClassVar[list["Stream"]] = []

    def __init__(self, agent: Agent, method: str, body: dict, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=30)
        data = json.dumps(body).encode()
        sent = {"Content-Type": "application/connect+json", "X-Access-Token": TOKEN}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        self.connection.request("POST", f"/process.Process/{method}", struct.pack(">BI", 0, len(data)) + data, sent)
        self.answer = self.connection.getresponse()
        self.opened.append(self)

    def next(self) -> dict | None:
        """The next event; None at a clean end; raises what the end envelope says."""
        flag, size = struct.unpack(">BI", self.answer.read(5))
        message = json.loads(self.answer.read(size))
        if flag & 2:
            if "error" in message:
                raise RuntimeError(message["error"]["code"])
            return None
        return message["event"]

    def rest(self) -> tuple[bytes, list[dict]]:
        output, others, expected = b"", [], None
        while event := self.next():
            if "data" in event:
                piece = base64.b64decode(next(v for k, v in event["data"].items() if k != "offset"))
                if "offset" in event["data"]:
                    assert expected in (None, event["data"]["offset"])
                    expected = event["data"]["offset"] + len(piece)
                output += piece
            else:
                others.append(event)
        return output, others

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.fixture(autouse=True)
def close_streams() -> Iterator[None]:
    yield
    while Stream.opened:
        Stream.opened.pop().close()


def start(script: str, **more: object) -> dict:
    return {"process": {"cmd": "/bin/sh", "args": ["-c", script]}, **more}


def test_exec(agent):
    got = agent.exec("cat; echo err >&2; exit 3", stdin=base64.b64encode(b"in").decode(), user="root")
    assert (base64.b64decode(got["stdout"]), base64.b64decode(got["stderr"]), got["exitCode"]) == (b"in", b"err\n", 3)
    assert not got["truncated"] and not got["timedOut"] and got["durationMs"] > 0
    late = agent.exec("echo before; sleep 50 & sleep 50", timeoutMs=200)
    assert late["timedOut"] and late["exitCode"] == -1 and late["signal"] == 9
    assert base64.b64decode(late["stdout"]) == b"before\n"
    cut = agent.exec("head -c 300000 /dev/zero", maxOutputBytes=1000)
    assert cut["truncated"] and len(base64.b64decode(cut["stdout"])) == 1000 and cut["exitCode"] == 0


def test_exec_refusals(agent):
    status, text = agent.call("POST", "/exec", {"cmd": "/no/such"})
    assert status == 400 and json.loads(text)["code"] == "invalid_argument"
    status, text = agent.call("POST", "/exec", {"cmd": "true", "user": "ghost"})
    assert status == 401 and json.loads(text)["message"] == "invalid username: 'ghost'"
    assert agent.call("POST", "/exec", b"{")[0] == 400
    assert agent.call("POST", "/exec", b" " * (5 << 20))[0] == 429
    assert agent.call("POST", "/process.Process/Nope", {})[0] == 404


def test_replay_from_offset(agent):
    stream = Stream(agent, "Start", start("printf 0123456789; sleep 1; printf abc", tag="replayed", detached=True))
    pid = stream.next()["start"]["pid"]
    assert stream.next()["data"]["offset"] == 0
    stream.close()
    again = Stream(agent, "Connect", {"process": {"pid": pid}, "offset": 4})
    again.next()
    event = again.next()["data"]
    assert (event["offset"], base64.b64decode(event["stdout"])) == (4, b"456789")
    again.close()
    time.sleep(1.2)
    ended = Stream(agent, "Connect", {"process": {"tag": "replayed"}, "offset": 0})
    output, others = ended.rest()
    assert output == b"0123456789abc"
    assert others[-1]["end"]["exitCode"] == 0
    quiet, others = Stream(agent, "Connect", {"process": {"pid": pid}}).rest()
    assert quiet == b"" and "end" in others[-1]
    listed = agent.json("POST", "/process.Process/List", {"includeEnded": True})["processes"]
    entry = next(p for p in listed if p["pid"] == pid)
    assert entry["ended"]["exitCode"] == 0 and entry["offset"] == 13 and entry["detached"]
    beyond = Stream(agent, "Connect", {"process": {"pid": pid}, "offset": 99})
    try:
        beyond.next()
        raise AssertionError("attached beyond the end")
    except RuntimeError as refused:
        assert str(refused) == "out_of_range"


def test_dropped_is_counted(agent):
    stream = Stream(agent, "Start", start("head -c 3000000 /dev/zero; sleep 30", offset=0))
    pid = stream.next()["start"]["pid"]
    stream.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        listed = agent.json("POST", "/process.Process/List", {"includeEnded": True})["processes"]
        if next(p for p in listed if p["pid"] == pid)["offset"] == 3000000:
            break
        time.sleep(0.05)
    again = Stream(agent, "Connect", {"process": {"pid": pid}, "offset": 0})
    again.next()
    dropped = again.next()["dropped"]
    assert dropped["bytes"] == dropped["offset"] == 3000000 - (1 << 20)
    agent.call("POST", "/process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    output, others = again.rest()
    assert len(output) == 1 << 20 and others[-1]["end"]["signal"] == 9


@pytest.mark.long
def test_slow_reader_holds_the_process_back(agent):
    script = "i=0; while [ $i -lt 400 ]; do head -c 65536 /dev/zero; i=$((i+1)); done; touch /tmp/agent-test-flooded"
    agent.exec("rm -f /tmp/agent-test-flooded")
    stream = Stream(agent, "Start", start(script))
    time.sleep(1.5)
    assert agent.exec("test -e /tmp/agent-test-flooded")["exitCode"] == 1, "26 MB went somewhere"
    output, _ = stream.rest()
    assert len(output) == 400 * 65536


def test_keepalive_and_deadlines(agent):
    stream = Stream(agent, "Start", start("sleep 1.5"), Keepalive_Ping_Interval="1")
    events = [stream.next() for _ in range(3)]
    assert "start" in events[0] and "keepalive" in events[1] and "end" in events[2]
    late = Stream(agent, "Start", start("sleep 60"), Connect_Timeout_Ms="200")
    pid = late.next()["start"]["pid"]
    try:
        late.next()
        raise AssertionError("no deadline")
    except RuntimeError as ended:
        assert str(ended) == "deadline_exceeded"
    detached = Stream(agent, "Start", start("sleep 60", detached=True), Connect_Timeout_Ms="200")
    pid = detached.next()["start"]["pid"]
    try:
        detached.next()
        raise AssertionError("no deadline")
    except RuntimeError as ended:
        assert str(ended) == "deadline_exceeded"
    assert agent.exec(f"kill -0 {pid}", user="root")["exitCode"] == 0
    assert agent.call("POST", "/process.Process/SendSignal", {"process": {"pid": pid}, "signal": 15})[0] == 200


def test_client_gone_in_the_middle_of_a_flood(agent):
    before = agent.descriptors()
    pids = []
    for _ in range(10):
        stream = Stream(agent, "Start", start("yes"))
        pids.append(stream.next()["start"]["pid"])
        stream.next()
        stream.close()
    time.sleep(1)
    assert agent.resident() < 80 << 20
    for pid in pids:
        body = {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
        assert agent.call("POST", "/process.Process/SendSignal", body)[0] == 200
    deadline = time.monotonic() + 5
    while agent.descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert agent.descriptors() <= before


def test_100_mb_through_a_stream(agent):
    stream = Stream(agent, "Start", start("yes | head -c 100000000"))
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], agent.resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    total = 0
    while event := stream.next():
        if "data" in event:
            total += len(event["data"]["stdout"]) // 4 * 3 - event["data"]["stdout"].count("=")
    done.set()
    watcher.join()
    assert total == 100000000
    assert peak[0] < 80 << 20, peak


def test_token_is_nowhere(agent):
    script = f"grep -r {TOKEN[:-1]}[{TOKEN[-1]}] /proc/1/environ /proc/1/cmdline /run /etc 2>/dev/null | head -1"
    assert agent.exec(script, user="root")["stdout"] == ""
    assert agent.exec("cat /proc/1/environ /proc/1/maps")["stdout"] == ""
    assert agent.exec("cat /proc/1/environ >/dev/null")["exitCode"] != 0
    listed = base64.b64decode(agent.exec("ls /proc/self/fd")["stdout"]).split()
    assert set(listed) <= {b"0", b"1", b"2", b"3"}, "a descriptor of the agent leaked"


def test_auth_and_init(fresh_agent):
    agent = fresh_agent
    refused = {
        "code": 401,
        "message": "unauthorized access, please provide a valid access token or method signing if supported",
    }
    assert agent.call("GET", "/health", token=None)[0] == 204
    for method, path in (("GET", "/metrics"), ("POST", "/process.Process/List"), ("GET", "/files?path=/etc/passwd")):
        status, text = agent.call(method, path, {} if method == "POST" else None, token=None)
        assert status == 401 and json.loads(text) == refused
    assert agent.call("POST", "/init", {}, token=None)[0] == 400
    body = {
        "accessToken": TOKEN,
        "envVars": {"A": "1"},
        "hostname": "named",
        "dns": ["10.0.0.1"],
        "sandboxId": "sbx1",
        "caBundle": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----",
        "timestamp": time.time() - 5,
    }
    ahead = time.time() - time.monotonic()
    answer = agent.call("POST", "/init", body, token=None, Accept="application/json")
    assert answer[0] == 200
    assert abs(time.time() - time.monotonic() - ahead) < 1, "it set the clock of this host"
    told = json.loads(answer[1])
    assert -6 < told["skewSeconds"] < -4 and told["warnings"] == []
    show = agent.exec(
        "hostname; cat /etc/resolv.conf /run/e2b/.E2B_SANDBOX_ID; tail -4 /etc/ssl/certs/ca-certificates.crt; "
        "grep -c named /etc/hosts; wc -c < /etc/machine-id",
        user="root",
    )
    lines = base64.b64decode(show["stdout"]).decode()
    assert lines.startswith("named\nnameserver 10.0.0.1\nsbx1# sandkeep-extra begin\n-----BEGIN") or "-----END" in lines
    assert lines.split()[-2:] == ["1", "33"]
    assert agent.call("POST", "/init", {"envVars": {}}, token=None)[0] == 401
    assert agent.call("POST", "/init", {"envVars": {}}, token="wrong" * 5)[0] == 401
    begin = time.monotonic()
    assert agent.call("POST", "/init", body)[0] == 204
    assert time.monotonic() - begin < 0.5
    rebound = TOKEN + "2"
    assert agent.call("POST", "/init", {"accessToken": rebound, "envVars": {}})[0] == 204
    assert agent.call("GET", "/envs")[0] == 401
    assert agent.call("GET", "/envs", token=rebound) == (200, b"{}")


def test_trees(agent):
    agent.exec(
        "rm -rf t; mkdir -p t/sub; echo x > t/sub/f; ln -s sub/f t/l; mkfifo t/fifo; truncate -s 1G t/sparse; chmod 750 t/sub/f"
    )
    status, data = agent.call("GET", "/tree?path=t")
    assert status == 200 and len(data) < 1 << 20
    tree = tarfile.open(fileobj=io.BytesIO(data))
    assert b"SANDKEEP.skipped=fifo is a socket, a FIFO or a device\n" in data
    names = sorted(m.name for m in tree.getmembers())
    assert names == [".", "l", "sparse", "sub", "sub/f"]
    assert tree.getmember("sparse").size == 1 << 30
    status, answer = agent.call("PUT", "/tree?path=copy", data)
    assert (status, json.loads(answer)) == (
        200,
        {"files": 2, "dirs": 2, "symlinks": 1, "bytes": (1 << 30) + 2, "skipped": 0},
    )
    shown = agent.exec("cat copy/l; stat -c '%a %U' copy/sub/f copy/sub; du -k copy | tail -1")
    lines = base64.b64decode(shown["stdout"]).decode().split("\n")
    assert lines[:3] == ["x", "750 user", "755 user"] and int(lines[3].split()[0]) < 200
    assert agent.call("GET", "/tree?path=/no/where")[0] == 404
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as out:
        out.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())
    assert agent.call("PUT", "/tree?path=copy", evil.getvalue())[0] == 400
    assert agent.call("PUT", "/tree?path=copy", b"garbage" * 200)[0] == 400


def test_a_tree_that_is_cut_leaves_no_half_file(agent):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as out:
        for name in ("first", "second"):
            member = tarfile.TarInfo(name)
            member.size = 300_000
            out.addfile(member, io.BytesIO(b"x" * member.size))
    assert agent.call("PUT", "/tree?path=cut", whole.getvalue()[:400_000])[0] == 400
    assert base64.b64decode(agent.exec("ls cut")["stdout"]) == b"first\n"


def test_an_upload_that_breaks_off_leaves_what_was_there(agent):
    for size in (1000, 300_000):
        agent.exec("echo precious > kept; chmod 600 kept; ln -sf kept link")
        for path in ("kept", "link"):
            with socket.create_connection(("127.0.0.1", agent.port), 10) as raw:
                raw.sendall(
                    f"POST /files?path={path} HTTP/1.1\r\nHost: x\r\nX-Access-Token: {TOKEN}\r\n"
                    "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                    f"{size:x}\r\n".encode()
                    + b"x" * size
                    + b"\r\n"
                )
            agent.exec("until [ $(ls -A | grep -c part) = 0 ]; do sleep 0.1; done")
            assert base64.b64decode(agent.exec("cat kept; ls -A | grep part")["stdout"]) == b"precious\n"
        assert agent.call("POST", "/files?path=link", b"y" * size)[0] == 200
        seen = base64.b64decode(agent.exec("wc -c < kept; stat -c '%a %U' kept; readlink link")["stdout"]).decode()
        assert seen.split() == [str(size), "600", "user", "kept"]


def test_who_is_left_behind_does_not_hold_the_answer(agent):
    begun = time.monotonic()
    answer = agent.exec("(sleep 3; echo late; sleep 0.1; echo more; touch left-alone) & echo now")
    assert time.monotonic() - begun < 2
    assert base64.b64decode(answer["stdout"]) == b"now\n" and answer["exitCode"] == 0
    stream = Stream(agent, "Start", {**start("sleep 30 & echo now"), "offset": 0})
    events = list(iter(stream.next, None))
    assert [next(iter(event)) for event in events] == ["start", "data", "end"]
    agent.exec("while [ ! -e left-alone ]; do sleep 0.1; done")
    agent.exec("kill $(pgrep -x sleep)")


def test_quiesce_finds_what_cannot_be_saved(agent):
    stream = Stream(
        agent, "Start", start("exec 5> held; rm held; exec 6> /dev/shm/fine; rm /dev/shm/fine; echo; sleep 30")
    )
    pid = stream.next()["start"]["pid"]
    stream.next()
    told = agent.json("POST", "/quiesce", {"deadlineMs": 5000})
    assert told["synced"]
    flushed = agent.json("POST", "/quiesce", {"deadlineMs": 5000, "diskOnly": True})
    assert (flushed["synced"], flushed["unsavable"]) == (True, None), "nothing was searched for"
    agent.call("POST", "/process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    # /home is a tmpfs here, so that one can be saved, too.
    assert [u for u in told["unsavable"] if u["pid"] == pid] == []


def test_resume(agent):
    stream = Stream(agent, "Start", start("sleep 20"))
    pid = stream.next()["start"]["pid"]
    told = agent.json("POST", "/resume", {"timestamp": time.time(), "hostname": "resumed", "generation": "g1"})
    assert told["processes"] >= 1 and abs(told["skewSeconds"]) < 1
    try:
        assert stream.answer.read(1) == b"", "the old connection is still open"
    except (ConnectionError, http.client.HTTPException):
        pass
    assert base64.b64decode(agent.exec("hostname; cat /run/sandkeep/generation")["stdout"]) == b"resumed\ng1\n"
    again = Stream(agent, "Connect", {"process": {"pid": pid}})
    assert again.next()["start"]["pid"] == pid
    again.close()


def test_metrics_and_events(agent):
    told = agent.json("GET", "/metrics")
    assert told["mem_total"] > told["mem_used"] > 0 and told["disk_total"] > 0 and told["process_count"] >= 1
    assert agent.json("GET", "/events?after=0") == {"events": [], "lastSeq": 0}


def test_fork_and_exit_of_many(agent):
    begin = time.monotonic()
    for _ in range(200):
        assert agent.json("POST", "/exec", {"cmd": "/bin/true"})["exitCode"] == 0
    assert time.monotonic() - begin < 20
    zombies = agent.exec("for s in /proc/[0-9]*/stat; do cat $s; done 2>/dev/null | grep -c ') Z '", user="root")
    assert base64.b64decode(zombies["stdout"]) == b"0\n"
    # An orphan is collected too.
    agent.exec("(sleep 0.2 &)")
    time.sleep(0.5)
    zombies = agent.exec("for s in /proc/[0-9]*/stat; do cat $s; done 2>/dev/null | grep -c ') Z '", user="root")
    assert base64.b64decode(zombies["stdout"]) == b"0\n"
