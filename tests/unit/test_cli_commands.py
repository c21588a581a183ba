"""The command line, run in process against a fake server: output, JSON, exit codes, help."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from tests.support.fake_api import KEY, FakeApi, Program, serve, tar

from sandkeep.cli.group import load
from sandkeep.cli.main import main
from sandkeep.cli.table import COMMANDS, HIDDEN, every_command, help_text

LINES = [("stdout", b"out\n"), ("stderr", b"err\n")]
ALL = [
    "setup", "up", "down", "demo", "doctor", "runtimes", "fsck", "purge", "create", "list", "show", "update", "exec",
    "shell", "run", "cp", "logs", "pause", "resume", "stop", "start", "delete", "wait", "why", "events", "stats",
    "snapshot", "rollback", "promote", "commit", "diff", "restore", "fork", "timeline", "archive", "wake", "export",
    "import", "template",
    "key", "node", "backup", "support-bundle", "completion",
]  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeApi]:
    with serve(FakeApi()) as running:
        monkeypatch.setenv("SANDKEEP_URL", running.url)
        monkeypatch.setenv("SANDKEEP_KEY", KEY)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        monkeypatch.delenv("SANDKEEP_INSTANCE", raising=False)
        yield running


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:  # how click ends a completion
            code = int(end.code or 0)
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def ours() -> list[tuple[str, click.Command]]:
    """Every command but those of host.py, subcommands too."""
    found: list[tuple[str, click.Command]] = []
    for name, (where, text) in every_command().items():
        if where.startswith("host:"):
            continue
        command = load(name, where, text)
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {child}", command.commands[child]) for child in command.commands]
    return found


def test_the_table_has_every_command_of_the_issue() -> None:
    assert sorted(name for section in COMMANDS.values() for name in section) == sorted(ALL)
    assert {"server", "runner"} <= set(HIDDEN)


@pytest.mark.parametrize(("name", "command"), ours(), ids=[name for name, _ in ours()])
def test_every_command_has_examples_json_and_instance(name: str, command: click.Command) -> None:
    text = command.get_help(click.Context(command, info_name=name))
    assert "Example" in text
    assert f"sandkeep {name}" in text
    assert "--json" in text
    assert "--instance" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_help_and_version(run: Run) -> None:
    for arguments in ([], ["--help"], ["-h"], ["--json", "--help"]):
        code, out, _ = run(*arguments)
        assert (code, out) == (0, help_text())
    version = run("--version")[1]
    assert version.startswith("sandkeep ")
    for arguments in (["--version", "--json"], ["--json", "--version"]):
        assert json.loads(run(*arguments)[1]) == {"version": version.split()[1]}


def test_create_prints_the_id_alone(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "from here")
    code, out, _ = run(
        "create", "--name", "dev", "--runtime", "runc", "--persistence", "full", "--cpus", "0.5", "--memory", "512MiB",
        "--disk", "2G", "--pids", "99", "--env", "A=b=c", "--env", "TAKEN", "--label", "x=y", "--network", "none",
        "--ttl", "1h", "--on-expiry", "delete", "--pause-or-disk", "--template", "base",
    )  # fmt: skip
    (view,) = api.sandboxes.values()
    assert (code, out) == (0, view["id"] + "\n")
    assert view["asked"] == {
        "name": "dev", "runtime": "runc", "persistence": "full", "cpus": 0.5, "memory": "512MiB", "disk": "2G",
        "pids": 99, "env": {"A": "b=c", "TAKEN": "from here"}, "labels": {"x": "y"}, "network": "none", "ttl": "1h",
        "on_expiry": "delete", "pause_or_disk": True, "template": "base",
    }  # fmt: skip
    code, out, _ = run("create", "--json")
    assert json.loads(out)["phase"] == "running"
    assert list(api.sandboxes.values())[1]["asked"] == {}


def test_a_value_that_no_request_can_carry(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTES", os.fsdecode(b"\xff"))
    for option in (["--env", "BYTES"], ["--env", os.fsdecode(b"A=\xfe")], ["--label", os.fsdecode(b"\xfd=1")]):
        code, _, err = run("create", *option)
        assert (code, "is not UTF-8" in err) == (2, True), err


def test_list_and_show_say_what_runc_is_for(api: FakeApi, run: Run) -> None:
    api.add("a", labels={"team": "web"})
    api.add("b", runtime="runc", phase="paused", hold="disk", reason="idle for \x1b[2J30m")
    code, out, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "a", "b"]
    assert "runc (trusted code only)" in out
    assert "paused (disk)" in out
    assert run("list", "--label", "team=web", "-q")[1].count("\n") == 1
    assert run("list", "--label", "team=none")[2] == "no sandbox is like that; `sandkeep list` shows all\n"
    assert [view["name"] for view in json.loads(run("list", "--phase", "paused", "--json")[1])] == ["b"]
    out = run("show", "b")[1]
    assert "paused (held in disk)" in out
    assert "idle for ?[2J30m" in out
    assert "GuestReady: yes" in out
    assert "trusted code only" in out
    assert json.loads(run("--json", "show", "b")[1])["hold"] == "disk"


def test_lifecycle_commands(api: FakeApi, run: Run) -> None:
    api.add("a")
    api.add("b")
    assert run("pause", "a", "--hold", "memory")[1] == "a is paused, held in memory\n"
    assert run("resume", "a")[1] == "a is running\n"
    code, out, err = run("pause", "nope", "a")
    assert (code, out, "no sandbox nope" in err) == (3, "a is paused, held in disk\n", True)
    run("resume", "a")
    assert run("stop", "a", "b")[1] == "a is stopped\nb is stopped\n"
    assert json.loads(run("start", "a", "--json")[1])["phase"] == "running"
    assert run("wait", "a", "--phase", "running", "--timeout", "5s")[1] == "a is running\n"
    run("update", "a", "--label", "x=1", "--cpus", "3", "--ttl", "none")
    assert (api.sandboxes["sbx_" + "0" * 20]["labels"], api.sandboxes["sbx_" + "0" * 20]["cpus"]) == ({"x": "1"}, 3)
    run("update", "a", "--remove-label", "x", "--label", "y=2")
    assert api.sandboxes["sbx_" + "0" * 20]["labels"] == {"y": "2"}
    assert run("update", "a")[0] == 2
    assert "1 MiB of 1 GiB" in run("stats", "a")[1]
    assert run("logs", "a")[1] == "agent: up\n"
    code, out, err = run("delete", "a", "nope", "b")
    assert (code, out) == (3, "a is deleted\nb is deleted\n")
    assert err.startswith("error: there is no sandbox nope")
    assert not api.sandboxes


def test_snapshots(api: FakeApi, run: Run) -> None:
    dev = api.add("dev")
    code, out, _ = run("snapshot", "create", "dev", "--name", "clean", "--kind", "disk", "--tag", "a", "--tag", "b")
    (clean,) = api.snapshots
    assert (code, out) == (0, clean["id"] + "\n")
    assert (clean["name"], clean["tags"]) == ("clean", ["a", "b"])
    told = json.loads(run("snapshot", "create", "dev", "--json")[1])
    assert (told["name"], told["held"]) == (None, 0.012)
    assert run("snapshot", "create", "dev", "--name", "clean")[0] == 5
    out = run("snapshot", "show", "dev@clean")[1]
    assert "tags:    a, b\n" in out
    assert "12 ms, in which its processes stood still" in out
    assert json.loads(run("snapshot", "show", f"{dev['id']}@{told['id']}", "--json")[1]) == told
    code, out, err = run("snapshot", "delete", "dev@nope", "dev@clean")
    assert (code, out, "no snapshot nope" in err) == (3, "dev@clean is deleted\n", True)
    assert json.loads(run("snapshot", "delete", f"dev@{told['id']}", "--json")[1]) == {"deleted": [f"dev@{told['id']}"]}
    assert api.snapshots == []
    assert run("snapshot", "list", "dev")[2] == "no snapshots; `sandkeep snapshot create dev --name NAME` makes one\n"
    assert run("snapshot", "list", "dev", "--json")[1] == "[]\n"


def test_snapshots_are_listed_as_a_tree(api: FakeApi, run: Run) -> None:
    dev, other = api.add("dev"), api.add("other")
    made: dict[str, str | None] = {None: None}  # type: ignore[dict-item]
    for name, parent in [
        ("clean", None), ("setup", "clean"), ("try-1", "setup"), ("more", "try-1"), ("try-2", "setup"), ("a", "try-2"),
        ("b", "try-2"), ("last", "b"), ("\x1b[2J", "try-1"),
    ]:  # fmt: skip
        made[name] = api.add_snapshot(dev, name, parent=made[parent])["id"]  # type: ignore[index]
    api.add_snapshot(other, "not-shown", parent=made["clean"])
    lines = run("snapshot", "list", "dev")[1].splitlines()
    assert [line.partition(" snp_")[0].rstrip() for line in lines[1:]] == [
        "clean",
        "setup",
        "|- try-1",
        "|  |- more",
        "|  `- ?[2J",
        "`- try-2",
        "   |- a",
        "   `- b",
        "      last",
    ]
    told = json.loads(run("snapshot", "list", "dev", "--json")[1])
    assert [view["id"] for view in told] == [view["id"] for view in api.snapshots[:-1]]
    # What came of a deleted snapshot is not hidden with it.
    api.snapshots = [view for view in api.snapshots if view["name"] not in ("clean", "setup")]
    lines = run("snapshot", "list", "dev")[1].splitlines()
    assert [line.split(" snp_")[0].rstrip() for line in lines[1:3]] == ["|- try-1", "|  |- more"]
    assert len(lines) == 8


def test_a_long_history_fits_a_terminal(api: FakeApi, run: Run) -> None:
    dev, parent = api.add("dev"), None
    for number in range(1500):
        parent = api.add_snapshot(dev, f"n{number}", parent=parent)["id"]
    lines = run("snapshot", "list", "dev")[1].splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"n{number}" for number in range(1500)]
    assert max(map(len, lines)) < 80


def test_the_sizes_of_snapshots(api: FakeApi, run: Run) -> None:
    sizes = {"written": 3 << 20, "freed": 1 << 20, "measured_at": "2026-11-01T00:00:00Z"}
    dev = api.add("dev")
    api.add_snapshot(dev, "clean", **sizes)
    api.add_snapshot(dev, "new")
    _, out, err = run("snapshot", "list", "dev")
    heads, clean, new = out.splitlines()
    assert "WRITTEN  FREES" in heads
    assert "3 MiB    1 MiB" in clean
    assert "disk  -        -" in new
    assert err.startswith("sizes as of ")
    assert "frees:   1 MiB, as of " in run("snapshot", "show", "dev@clean")[1]


def test_a_timeline(api: FakeApi, run: Run) -> None:
    dev = api.add("dev")
    assert "made:    none by rule\n" in run("timeline", "show", "dev")[1]
    code, out, err = run("timeline", "set", "dev", "--every", "3600", "--on-oom", "--on-crash")
    assert (code, out.splitlines()[0]) == (0, "made:    every 1h, on out of memory, on crash")
    assert "nothing says what goes" in err
    code, out, err = run(
        "timeline", "set", "dev", "--keep-last", "3", "--keep-daily", "7", "--keep-tag", "a", "--no-on-crash"
    )
    assert (code, err) == (0, "")
    assert "made:    every 1h, on out of memory\n" in out, "the rest stays"
    assert "keep:    3 last, 7 daily, tagged a\n" in out
    assert run("timeline", "set", "dev", "--every", "5400", "--budget", str(5 << 30))[0] == 0
    assert "every 5400s" in run("timeline", "show", "dev")[1]
    shown = json.loads(run("timeline", "set", "dev", "--every", "off", "--budget", "none", "--json")[1])
    assert (shown["every"], shown["budget"], shown["keep_last"]) == (None, None, 3)
    for wrong in ([], ["--off", "--keep-last", "2"]):
        assert run("timeline", "set", "dev", *wrong)[0] == 2
    assert run("timeline", "set", "dev", "--off")[0] == 0
    assert api.timelines[dev["id"]] == {}
    assert run("timeline", "show", "nope")[0] == 3


def test_prune(api: FakeApi, run: Run) -> None:
    dev = api.add("dev")
    assert run("timeline", "prune", "dev")[:2] == (0, "no snapshots\n")
    old, _ = api.add_snapshot(dev), api.add_snapshot(dev, "clean")
    code, out, err = run("timeline", "prune", "dev", "--plan")
    assert (code, err) == (0, "1 snapshot of 2 would go; all of them held 3 MiB\n")
    assert "goes: no rule keeps it" in out.splitlines()[1]
    assert "stays: last" in out.splitlines()[2]
    assert len(api.snapshots) == 2
    done = json.loads(run("timeline", "prune", "dev", "--json")[1])
    assert [item["snapshot"]["id"] for item in done["items"] if not item["keep"]] == [old["id"]]
    assert [view["name"] for view in api.snapshots] == ["clean"]


def test_rollback(api: FakeApi, run: Run) -> None:
    api.add_snapshot(api.add("dev", phase="stopped"), "clean")
    code, out, err = run("rollback", "dev@clean")
    assert (code, out) == (0, "dev is stopped, as it was at clean\n")
    assert err == "the moment before is kept: `sandkeep snapshot list dev` shows it\n"
    code, out, err = run("rollback", "dev@clean", "--no-keep-before", "--json")
    assert (code, json.loads(out)["name"], err) == (0, "dev", "")
    assert [asked["keep_before"] for asked in api.rollbacks] == [True, False]
    assert run("rollback", "dev@nope")[0] == 3
    assert run("rollback", "nope@clean")[0] == 3


def test_fork(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    api.add_snapshot(api.add("dev", runtime="runc"), "clean")
    code, out, _ = run("fork", "dev@clean", "--count", "2", "--name", "try")
    made = list(api.sandboxes.values())[1:]
    assert (code, out.split()) == (0, [view["id"] for view in made])
    assert made[0]["asked"] == {"snapshot": "clean", "count": 2, "name": "try"}
    assert [view["name"] for view in json.loads(run("fork", "dev", "--name", "one", "--json")[1])] == ["one"]
    assert next(reversed(api.sandboxes.values()))["asked"] == {"count": 1, "name": "one"}
    assert run("fork", "dev@nope")[0] == 3
    assert run("fork", "dev", "--count", "101")[0] == 2
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, out, err = run("fork", "dev", "--name", "seen")
    assert (code, out.split(" (")[0], "trusted code only" in err) == (0, "seen is running", True)
    assert "made (snp_" in run("snapshot", "create", "dev")[1]


@pytest.mark.parametrize(
    ("name", "left", "told"),
    [
        ([], ["dev"], ""),
        (
            ["--name", "try"],
            ["dev", "try-1", "try-2"],
            "there now: try-1, try-2; `sandkeep delete try-1 try-2` removes them",
        ),
    ],
)
def test_an_interrupted_fork_deletes_what_has_no_name(
    api: FakeApi, run: Run, name: list[str], left: list[str], told: str
) -> None:
    api.add("dev")
    api.boots_slowly = threading.Event()

    def interrupt() -> None:
        while not api.forks:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert api.boots_slowly
        api.boots_slowly.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, _, err = run("fork", "dev", "--count", "2", *name)
    thread.join()
    assert (code, err.startswith("cancelling\n"), told in err) == (130, True, True)
    assert len(api.forks) == 1
    assert [view["name"] for view in api.sandboxes.values()] == left


@pytest.mark.parametrize("wrong", ["dev", "dev@", "@clean", "@", ""])
def test_a_point_says_how_it_is_written(run: Run, wrong: str) -> None:
    for command in (["rollback"], ["snapshot", "show"], ["snapshot", "delete", "dev@clean"]):
        code, _, err = run(*command, wrong)
        assert (code, "is not NAME@SNAPSHOT" in err) == (2, True), err
        assert f"`sandkeep snapshot list {wrong.partition('@')[0] or 'NAME'}` shows the snapshots" in err
    if wrong != "dev":
        code, _, err = run("fork", wrong)
        assert (code, "is not NAME or NAME@SNAPSHOT" in err) == (2, True)


def test_errors_exit_with_their_code(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("show", "nope")[0] == 3
    code, out, err = run("show", "nope", "--json")
    assert (code, out) == (3, "")
    assert json.loads(err)["error"]["code"] == "not_found"
    code, _, err = run("nonsense")
    assert (code, "hint: see `sandkeep --help`" in err) == (2, True)
    code, _, err = run("create", "--cpus", "many", "--json")
    assert (code, json.loads(err)["error"]["code"]) == (2, "usage")
    for status, name, expected in [
        (409, "already_exists", 5), (507, "no_capacity", 6), (504, "deadline_exceeded", 8), (400, "unsupported", 2),
        (500, "internal", 1), (409, "pause_failed", 5),
    ]:  # fmt: skip
        api.fail(status, name, hint="try this")
        code, _, err = run("create")
        assert (code, err) == (expected, f"error: scripted {name}\nhint: try this\n")
    monkeypatch.setenv("SANDKEEP_KEY", "sk_wrong")
    assert run("list")[0] == 4
    monkeypatch.delenv("SANDKEEP_URL")
    code, _, err = run("list")
    assert (code, "sandkeep up" in err) == (2, True)
    assert run("list", "--instance", "nope")[0] == 2


def test_instances_come_from_the_file(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandkeep.sdk.config import save_instance

    monkeypatch.delenv("SANDKEEP_URL")
    monkeypatch.delenv("SANDKEEP_KEY")
    save_instance("wrong", "http://127.0.0.1:1", "sk_x")
    save_instance("test", api.url, KEY)
    api.add("dev")
    assert run("list", "-q", "--instance", "test")[0] == 0
    assert run("--instance", "test", "list", "-q")[0] == 0
    monkeypatch.setenv("SANDKEEP_INSTANCE", "test")
    assert run("list", "-q")[0] == 0


def test_exec_passes_output_and_exit_code_on(api: FakeApi, run: Run) -> None:
    api.add("dev")
    api.programs = [Program(LINES, end={"exitCode": 3, "exited": True}) for _ in range(3)]
    assert run("exec", "dev", "--user", "root", "--cwd", "/w", "--env", "A=1", "--", "ls", "-l") == (
        3,
        "out\n",
        "err\n",
    )
    message = next(iter(api.processes.values())).message
    assert message["process"] == {"cmd": "ls", "args": ["-l"], "envs": {"A": "1"}, "cwd": "/w"}
    assert message["stdin"] is False
    assert run("exec", "--timeout", "30s", "dev", "--", "x", "--json")[0] == 3
    assert list(api.processes.values())[1].message["timeoutMs"] == 30000
    code, out, _ = run("exec", "dev", "--json", "--", "x")
    told = json.loads(out)
    assert (code, told["exit_code"], told["stdout"], told["stderr"]) == (3, 3, "out\n", "err\n")
    api.programs = [Program(LINES, end={"exitCode": -1, "exited": False, "signal": 15})]
    assert run("exec", "dev", "--", "x")[0] == 143
    assert run("exec", "nope", "--", "x")[0] == 125
    api.sandboxes["sbx_" + "0" * 20]["phase"] = "paused"
    assert run("exec", "dev")[0] == 2


def test_exec_passes_input_on(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    api.add("dev")
    api.programs = [Program([], gate=threading.Event(), echo=True)]
    reader, writer = os.pipe()
    os.write(writer, b"from here\n")
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert run("exec", "-i", "dev", "--", "cat") == (0, "from here\n", "")
        code, _, err = run("exec", "-it", "dev", "--", "cat")
    assert (code, "no terminal here" in err) == (2, True)


def test_run_deletes_what_it_made(api: FakeApi, run: Run) -> None:
    api.programs = [Program(LINES, end={"exitCode": 7, "exited": True})]
    asked: list[object] = []
    api.failures = [lambda request: asked.append(request.url.path)]  # type: ignore[func-returns-value,list-item]
    assert run("run", "--memory", "1G", "--env", "A=1", "--", "make") == (7, "out\n", "err\n")
    assert not api.sandboxes
    assert ("DELETE", "/v1/sandboxes/sbx_" + "0" * 20) in api.requests
    api.fail(507, "no_capacity")
    assert run("run", "--", "make")[0] == 125


def test_events(api: FakeApi, run: Run) -> None:
    api.add("dev")
    for number in range(3):
        api.record("sandbox.paused", f"sbx_{number}")
    assert len(run("events")[1].splitlines()) == 3
    lines = run("events", "dev", "--after", "1", "--json")[1].splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [2, 3]


def test_templates_keys_and_runtimes(api: FakeApi, run: Run) -> None:
    assert run("template", "build", "web", "--from", "base", "--run", "true") == (
        0, "step 1\nstep 2\ntpl_11111111111111111111 is ready\n", "",
    )  # fmt: skip
    assert run("template", "list")[1].splitlines()[1].startswith("base ")
    assert run("template", "show", "web", "--log")[1].endswith("step 1\nstep 2\n")
    assert run("template", "delete", "web")[1] == "web is deleted\n"
    assert run("key", "create", "ci")[1] == "sk_cdef\n"
    assert json.loads(run("key", "list", "--json")[1])[0]["name"] == "ci"
    assert run("key", "revoke", "key_1", "key_2")[1] == "key_1 is revoked\nkey_2 is revoked\n"
    assert "trusted code only" in run("runtimes")[1]


def test_cp_of_files(api: FakeApi, run: Run, tmp_path: Path) -> None:
    api.add("dev")
    source = tmp_path / "notes.txt"
    source.write_text("hello")
    assert run("cp", str(source), "dev:/work/")[0] == 0
    assert run("cp", str(source), "dev:/work")[0] == 0
    assert run("cp", str(source), "dev:/other/name")[0] == 0
    assert api.files == {"/work/notes.txt": b"hello", "/other/name": b"hello"}
    assert run("cp", "dev:/work/notes.txt", "-")[1] == "hello"
    assert run("cp", "dev:/work/notes.txt", str(tmp_path / "copy"))[0] == 0
    assert (tmp_path / "copy").read_text() == "hello"
    (tmp_path / "folder").mkdir()
    assert run("cp", "dev:/work/notes.txt", str(tmp_path / "folder"))[0] == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["notes.txt"]
    assert run("cp", "dev:/nope", str(tmp_path))[0] == 3
    for wrong in (["a", "b"], ["dev:/a", "dev:/b"], [str(tmp_path), "dev:/x"], [str(tmp_path / "nope"), "dev:/x"]):
        assert run("cp", *wrong)[0] == 2
    code, _, err = run("cp", "dev:/work/notes.txt", str(tmp_path / "missing" / "copy"))
    assert (code, f"{tmp_path / 'missing'} is no folder" in err) == (2, True)
    source.chmod(0o755)
    assert run("cp", str(source), "dev:/work/tool", "--json")[0] == 0
    assert b"tool" in api.tree_got


def test_cp_of_trees(api: FakeApi, run: Run, tmp_path: Path) -> None:
    import tarfile

    api.add("dev")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("x")
    code, out, _ = run("cp", "-r", str(tmp_path / "src"), "dev:/new", "--json")
    assert (code, json.loads(out)["files"]) == (0, 1)
    link = tarfile.TarInfo("out")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    file = tarfile.TarInfo("f")
    api.tree = tar([(link, b""), (file, b"x")])
    code, _, err = run("cp", "-r", "dev:/work", str(tmp_path / "back"))
    assert (code, err) == (0, "skipped: out is a symlink that leads out, to /etc\n")
    assert (tmp_path / "back" / "f").read_bytes() == b"x"
    (tmp_path / "there").mkdir()
    run("cp", "-r", "dev:/work", str(tmp_path / "there"))
    assert (tmp_path / "there" / "work" / "f").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(api: FakeApi, run: Run, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_SANDKEEP_COMPLETE" in out
    api.add("dev")
    api.add("demo")
    api.add("other")
    monkeypatch.setenv("_SANDKEEP_COMPLETE", f"{shell}_complete")
    for words, expected in [
        ("sandkeep show d", {"dev", "demo"}), ("sandkeep cre", {"create"}), ("sandkeep template bu", {"build"}),
        ("sandkeep create --template b", {"base"}),
    ]:  # fmt: skip
        last = words.split()[-1]
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", last if shell == "fish" else str(len(words.split()) - 1))
        out = run()[1]
        assert {word for word in expected if word in out} == expected
        assert "other" not in out


def test_points_are_completed(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dev", "demo"):
        box = api.add(name)
        api.add_snapshot(box, "clean")
        api.add_snapshot(box, "setup")
    nameless = api.add_snapshot(box)["id"]
    monkeypatch.setenv("_SANDKEEP_COMPLETE", "bash_complete")
    for words, expected in [
        ("rollback de", ["dev@", "demo@"]), ("rollback dev", ["dev@clean", "dev@setup"]), ("rollback x", []),
        ("rollback demo@", ["demo@clean", "demo@setup", f"demo@{nameless}"]), ("rollback x@", []),
        ("snapshot delete dev@clean dev@s", ["dev@setup"]), ("snapshot show dev@", ["dev@clean", "dev@setup"]),
        ("fork dev", ["dev"]), ("fork dev@c", ["dev@clean"]), ("snapshot create de", ["dev", "demo"]),
        ("timeline prune de", ["dev", "demo"]), ("diff dev@c", ["dev@clean"]), ("diff dev@clean d", ["dev", "demo"]),
        ("restore de", ["dev@", "demo@"]), ("restore dev", ["dev@clean", "dev@setup"]),
        ("restore dev@clean:/", ["dev@clean:/etc/", "dev@clean:/file"]),
        ("snapshot cat dev@clean:/e", [f"dev@clean:/etc/{name}" for name in ("hostname", "hosts", "name:colon")]),
        ("snapshot cp dev@clean:/etc/hostn", ["dev@clean:/etc/hostname"]), ("snapshot ls dev:/f", ["dev:/file"]),
        ("snapshot ls dev@cl", ["dev@clean:/etc/", "dev@clean:/file"]), ("snapshot cat dev@clean:/no/", []),
    ]:  # fmt: skip
        monkeypatch.setenv("COMP_WORDS", f"sandkeep {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
        assert run()[1].split() == [f"plain,{word}" for word in expected], words


def test_bash_completes_points(api: FakeApi, run: Run, tmp_path: Path) -> None:
    """It breaks words at @, and replaces only what comes after."""
    api.add_snapshot(api.add("dev"), "clean")
    program = tmp_path / "sandkeep"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sandkeep.cli.main "$@"\n')
    program.chmod(0o755)
    script = run("completion", "bash")[1]
    for words, breaks, expected in [
        ("rollback dev @ cl", " @", "clean"), ("rollback dev @", " @", "clean"), ("rollback de", " @", "dev@clean"),
        ("rollback dev@cl", " ", "dev@clean"), ("snapshot delete dev @ x dev @", " @", "clean"),
        ("rollba", " @", "rollback"), ("restore dev @ clean : /etc/hostn", " @:", "/etc/hostname"),
        ("restore dev@clean : /etc/hostn", " :", "/etc/hostname"), ("restore dev @ clean:/fi", " @", "clean:/file"),
        ("restore dev @ clean : /etc/name : c", " @:", "colon"),
    ]:  # fmt: skip
        call = f"""
            COMP_WORDBREAKS={shlex.quote(breaks)} COMP_WORDS=(sandkeep {words}) COMP_CWORD={len(words.split())}
            _sandkeep_completion {program}
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", script + call], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (f"{expected}\n", ""), words
