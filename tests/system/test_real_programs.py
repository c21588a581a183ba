"""Programs that people run go on correctly in every fork, and a database that is written to survives every way back in time."""

from collections.abc import Iterator
from typing import Any

import pytest

from sandkeep.sdk import Client, Output, Process, Sandbox, Terminal
from support.instance import Instance, client_of, until

BIN, DATA = "/usr/lib/postgresql/15/bin", "/var/lib/postgresql/15/main"
POSTGRES = [f"{BIN}/postgres", "-D", DATA, "-c", "config_file=/etc/postgresql/15/main/postgresql.conf"]
PSQL = ["psql", "-qtAX", "-v", "ON_ERROR_STOP=1"]
SUM = "select count(*) || ' ' || md5(string_agg(n || text, ',' order by n)) from kept"
WRITER = r"""
import itertools, subprocess
psql = subprocess.Popen(["psql", "-qX", "-v", "ON_ERROR_STOP=1"], stdin=subprocess.PIPE, text=True)
for number in itertools.count(1):
    psql.stdin.write(f"insert into log values ({number});\n\\warn {number}\n")
"""
"""psql says a number once the server has acknowledged its commit, and not before."""
SQLITE = """
import itertools, sqlite3
database = sqlite3.connect("/home/user/log.db", isolation_level=None)
database.execute("pragma journal_mode = %s")
database.execute("pragma synchronous = full")
database.execute("create table log (n integer primary key)")
for number in itertools.count(1):
    database.execute("insert into log values (?)", (number,))
    print(number, flush=True)
"""
LOGGED = """
import sqlite3
database = sqlite3.connect("/home/user/log.db")
assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
print(*(n for (n,) in database.execute("select n from log order by n")))
"""


@pytest.fixture(scope="module")
def programs() -> Iterator[Instance]:
    with Instance.made("programs") as made:
        yield made
        assert made.fsck() == []


@pytest.fixture
def people(programs: Instance) -> Iterator[Client]:
    """A client of that instance."""
    programs.ensure_up()
    with client_of(programs) as made:
        yield made
        programs.ensure_up()
        programs.clean(made)


def box(client: Client, runtime: str = "gvisor", **options: Any) -> Sandbox:
    return Sandbox.create(template="programs", runtime=runtime, memory="256MiB", client=client, **options)  # type: ignore[arg-type]


def said(sandbox: Sandbox, command: str | list[str], user: str = "root") -> str:
    done = sandbox.exec(command, user=user, cwd="/")
    assert done.exit_code == 0, done.stdout + done.stderr
    return done.stdout.strip()


def serve(sandbox: Sandbox) -> None:
    """PostgreSQL answers: for the first time, or after it has recovered what a crash left."""
    said(sandbox, "install -d -o postgres -g postgres /run/postgresql /var/log/postgresql")
    server = sandbox.start_process(POSTGRES, user="postgres", cwd="/")
    server.detach()
    until(lambda: sandbox.exec(["pg_isready", "-q"]).exit_code == 0, 60, wait=0.1)


def sql(sandbox: Sandbox, text: str) -> str:
    return said(sandbox, [*PSQL, "-c", text], user="postgres")


def heard(process: Process, text: str) -> None:
    """Read on until it has printed this."""
    so_far = ""
    for event in process:
        assert isinstance(event, Output)
        so_far += event.text
        if text in so_far:
            return
    raise AssertionError(f"it ended: {so_far}")


def shown(terminal: Terminal, text: bytes) -> None:
    """Read on until it has shown this."""
    so_far = b""
    for printed in terminal:
        assert isinstance(printed, bytes)
        so_far += printed
        if text in so_far:
            return
    raise AssertionError(f"it ended: {so_far!r}")


def acknowledged(process: Process, stream: str, least: int) -> int:
    """The number that a writer has got to, once that is `least`."""
    rest = ""
    for event in process:
        if isinstance(event, Output) and event.stream == stream:
            *lines, rest = (rest + event.text).split("\n")
            if lines and int(lines[-1]) >= least:
                return int(lines[-1])
    raise AssertionError("the writer ended")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def whole(rows: list[int], least: int) -> None:
    assert rows == list(range(1, len(rows) + 1)), "in order, and none is missing"
    assert len(rows) >= least, "what was acknowledged before is there"


@pytest.mark.long
def test_postgresql_goes_on_in_every_fork(people: Client) -> None:
    source = box(people, name="db")
    serve(source)
    sql(source, "create table kept (n bigint primary key, text text); checkpoint")
    sql(source, "insert into kept select n, md5(n::text) from generate_series(1, 2000) n")
    truth = sql(source, SUM)
    session = source.start_process([*PSQL], user="postgres", cwd="/", stdin=True)
    session.write("begin;\ninsert into kept values (0, 'of a transaction that was open');\n\\warn open\n")
    heard(session, "open")
    forks = source.fork(2, name="try")
    family = [source, *forks]
    assert [sql(one, SUM) for one in family] == [truth] * 3
    for number, one in enumerate(family):
        sql(one, f"insert into kept values ({10_000 + number}, 'mine alone')")
    there = forks[0].attach(session.pid, offset=session.offset)
    there.write("commit;\n\\warn committed\n")
    heard(there, "committed")
    mine = [numbers(sql(one, "select n from kept where n < 1 or n > 2000 order by n")) for one in family]
    assert mine == [[10_000], [0, 10_001], [10_002]]
    session.write("rollback;\n\\warn over\n")
    heard(session, "over")
    for one in family[1:]:
        one.stop()
        serve(one)
    mine = [numbers(sql(one, "select n from kept where n < 1 or n > 2000 order by n")) for one in family]
    assert mine == [[10_000], [0, 10_001], [10_002]]
    assert {sql(one, f"{SUM} where n between 1 and 2000") for one in family} == {truth}


@pytest.mark.long
def test_postgresql_recovers_in_forks_of_its_disk(people: Client, runtime: str) -> None:
    source = box(people, runtime)
    serve(source)
    sql(source, "create table kept (n bigint primary key, text text)")
    sql(source, "insert into kept select n, md5(n::text) from generate_series(1, 2000) n")
    truth = sql(source, SUM)
    forks = source.fork(2, kind="disk")
    for number, one in enumerate(forks):
        serve(one)
        assert sql(one, SUM) == truth
        sql(one, f"insert into kept values ({10_000 + number}, 'mine alone')")
    assert sql(source, SUM) == truth
    assert [sql(one, "select max(n) from kept") for one in forks] == ["10000", "10001"]


@pytest.mark.long
def test_an_ssh_agent_still_signs_and_host_keys_are_other_ones(people: Client) -> None:
    source = box(people)
    said(source, "ssh-keygen -A && rm /etc/ssh/ssh_host_rsa_key*")
    said(source, "ssh-keygen -q -t ed25519 -N '' -f /dev/shm/key && ssh-agent -a /dev/shm/agent > /dev/null 2>&1")
    agent = "export SSH_AUTH_SOCK=/dev/shm/agent; cd /dev/shm; "
    said(source, f"{agent} ssh-add -q key && rm key")
    forks = source.fork(2)
    family = [source, *forks]
    for number, one in enumerate(family):
        said(one, f"{agent} test ! -e key; echo {number} > note; ssh-keygen -q -Y sign -f key.pub -n test note")
        valid = said(one, f"{agent} ssh-keygen -Y check-novalidate -n test -s note.sig < note")
        assert "Good" in valid
    keys = [said(one, "cd /etc/ssh && cat ssh_host_ed25519_key.pub ssh_host_ecdsa_key.pub") for one in family]
    assert len({key for both in keys for key in both.splitlines()}) == 2 * len(family)
    for one, public in zip(forks, keys[1:], strict=True):
        assert said(one, "ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key").split()[1] == public.split()[1]


def test_a_shell_in_a_terminal_is_alive_on_both_sides(client: Client) -> None:
    source = Sandbox.create(template="test", runtime="gvisor", memory="256MiB", client=client)
    shell = source.start_process(["bash", "--norc"], pty=(80, 24))
    terminal = source.open_terminal(["bash", "--norc"])
    shell.write("kept=42; cd /tmp; echo r''eady\n")
    heard(shell, "ready")
    terminal.write(b"kept=43; tty > /dev/shm/tty; echo r''eady\n")
    shown(terminal, b"ready")
    fork = source.fork()[0]
    shell.write("echo source-$kept-$PWD\n")
    heard(shell, "source-42-/tmp")
    for pid, kept in ((shell.pid, "42"), (terminal.pid, "43")):
        there = fork.attach(pid, pty=True)
        there.write("echo fork-$kept\n")
        heard(there, f"fork-{kept}")
        there.resize(100, 30)
        there.write("stty size; kept=other; exit 7\n")
        heard(there, "30 100")
        assert there.wait().exit_code == 7
    shell.write("echo still-$kept; exit 8\n")
    assert shell.wait().exit_code == 8
    said(source, "echo reached > $(cat /dev/shm/tty)")
    shown(terminal, b"reached")  # what is read attaches again; what is written before that is lost
    terminal.write(b"echo still-$kept\n")
    shown(terminal, b"still-43")
    terminal.close()


def writing(sandbox: Sandbox) -> tuple[Process, int]:
    """A writer to PostgreSQL, and what it has got to."""
    serve(sandbox)
    sql(sandbox, "create table log (n bigint primary key)")
    writer = sandbox.start_process(["python3", "-c", WRITER], user="postgres", cwd="/")
    return writer, acknowledged(writer, "stderr", 200)


def logged(sandbox: Sandbox) -> list[int]:
    return numbers(sql(sandbox, "select n from log order by n"))


@pytest.mark.long
def test_postgresql_is_written_to_while_its_disk_is_kept(people: Client, runtime: str) -> None:
    sandbox = box(people, runtime)
    writer, least = writing(sandbox)
    sandbox.snapshot("busy")
    later = acknowledged(writer, "stderr", least + 1)
    writer.detach()
    fork = sandbox.fork(snapshot="busy")[0]
    sandbox.rollback("busy")
    before = sandbox.snapshots.list()[-1]
    for one in (fork, sandbox):
        serve(one)
        whole(logged(one), least)
    sandbox.rollback(before, keep_before=False)
    serve(sandbox)
    whole(logged(sandbox), later)


@pytest.mark.long
def test_postgresql_is_written_to_while_its_memory_is_kept(people: Client) -> None:
    """Server and writer go on from that moment; and a crash afterwards is recovered from."""
    sandbox = box(people)
    writer, least = writing(sandbox)
    sandbox.snapshot("busy", kind="full")
    later = acknowledged(writer, "stderr", least + 1)
    writer.detach()
    fork = sandbox.fork(snapshot="busy")[0]
    sandbox.rollback("busy")
    before = sandbox.snapshots.list()[-1]
    for one, at_least in ((fork, least), (sandbox, least)):
        rows = logged(one)
        whole(rows, at_least)
        until(lambda one=one, rows=rows: len(logged(one)) > len(rows), 30)  # type: ignore[misc]
    sandbox.rollback(before, keep_before=False)
    whole(logged(sandbox), later)
    rows = logged(fork)
    assert fork.exec("kill -9 -1", user="postgres").exit_code == 0  # everything of that user's but this
    until(lambda: fork.exec(["pg_isready", "-q"]).exit_code != 0)
    serve(fork)
    whole(logged(fork), len(rows))


@pytest.mark.parametrize(
    ("runtime", "kind", "journal"),
    [
        ("gvisor", "full", "wal"),
        ("gvisor", "disk", "wal"),
        ("runc", "disk", "wal"),
        pytest.param("gvisor", "disk", "delete", marks=pytest.mark.long),
        pytest.param("runc", "disk", "delete", marks=pytest.mark.long),
    ],
)
def test_sqlite_is_written_to_while_it_is_kept(
    client: Client, instance: Instance, runtime: str, kind: str, journal: str
) -> None:
    def rows(one: Sandbox) -> list[int]:
        return numbers(said(one, ["python3", "-c", LOGGED], "user"))

    sandbox = Sandbox.create(template="test", runtime=runtime, memory="128MiB", disk="512MiB", client=client)  # type: ignore[arg-type]
    writer = sandbox.start_process(["python3", "-c", SQLITE % journal])
    least = acknowledged(writer, "stdout", 50)
    sandbox.snapshot("busy", kind=kind)  # type: ignore[arg-type]
    later = acknowledged(writer, "stdout", least + 1)
    writer.detach()
    fork = sandbox.fork(snapshot="busy")[0]
    sandbox.rollback("busy")
    before = sandbox.snapshots.list()[-1]
    for one in (fork, sandbox):
        there = rows(one)
        whole(there, least)
        if kind == "full":  # the writer goes on
            until(lambda one=one, there=there: len(rows(one)) > len(there), 30)  # type: ignore[misc]
    sandbox.rollback(before, keep_before=False)
    whole(rows(sandbox), later)
    assert instance.fsck() == []
