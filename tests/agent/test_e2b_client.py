"""E2B's public client against the agent."""

import io
import time

import pytest

e2b = pytest.importorskip("e2b")


def test_run(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2; id -un; pwd")
    assert result.stdout == "out\nuser\n/home/user\n"
    assert result.stderr == "err\n"
    assert result.exit_code == 0


def test_exit_code_and_error(sandbox):
    with pytest.raises(e2b.CommandExitException) as failed:
        sandbox.commands.run("exit 7")
    assert failed.value.exit_code == 7
    assert failed.value.error == "exit status 7"


def test_root_cwd_and_envs(sandbox):
    script = "id -un; pwd; echo $A-$FROM_INIT-$E2B_SANDBOX-$E2B_SANDBOX_ID-$SECRET_OF_THE_HOST"
    result = sandbox.commands.run(script, user="root", cwd="/usr", envs={"A": "b"})
    assert result.stdout == "root\n/usr\nb-yes-true-sbxtest-\n"


def test_unknown_user_and_cwd(sandbox):
    with pytest.raises(e2b.AuthenticationException, match="invalid username: 'nobody-such'"):
        sandbox.commands.run("true", user="nobody-such")
    with pytest.raises(e2b.InvalidArgumentException, match="cwd '/no/where' does not exist"):
        sandbox.commands.run("true", cwd="/no/where")


def test_background_list_kill(sandbox):
    command = sandbox.commands.run("sleep 100", background=True)
    assert command.pid in [p.pid for p in sandbox.commands.list()]
    sandbox.commands.run(f"kill -0 {command.pid}")
    assert sandbox.commands.kill(command.pid)
    with pytest.raises(e2b.CommandExitException) as failed:
        command.wait()
    assert failed.value.exit_code == -1
    with pytest.raises(e2b.CommandExitException):
        sandbox.commands.run(f"kill -0 {command.pid}")
    assert command.pid not in [p.pid for p in sandbox.commands.list()]
    assert not sandbox.commands.kill(command.pid)


def test_stdin(sandbox):
    command = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(command.pid, "hello ")
    sandbox.commands.send_stdin(command.pid, "world")
    sandbox.commands.close_stdin(command.pid)
    assert command.wait().stdout == "hello world"


def test_stdin_is_empty_by_default(sandbox):
    assert sandbox.commands.run("cat; echo end").stdout == "end\n"


def test_reconnect(sandbox):
    command = sandbox.commands.run("sleep 0.5; echo later", background=True)
    again = sandbox.commands.connect(command.pid)
    assert again.wait().stdout == "later\n"


def test_disconnected_process_lives(sandbox):
    command = sandbox.commands.run("sleep 0.3; echo done > /tmp/agent-test-lived; sleep 100", background=True)
    command.disconnect()
    time.sleep(0.8)
    assert sandbox.files.read("/tmp/agent-test-lived") == "done\n"
    assert command.kill()


def test_timeout_kills(sandbox):
    with pytest.raises(e2b.TimeoutException):
        sandbox.commands.run("echo $$ > /tmp/agent-test-pid; sleep 77", timeout=1)
    time.sleep(0.3)
    pid = sandbox.files.read("/tmp/agent-test-pid").strip()
    with pytest.raises(e2b.CommandExitException):
        sandbox.commands.run(f"kill -0 {pid}", user="root")


def test_broken_utf8(sandbox):
    assert sandbox.commands.run(r"printf 'a\377b'").stdout == "a\ufffdb"


def test_pty(sandbox):
    output = io.BytesIO()
    terminal = sandbox.pty.create(size=e2b.PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    sandbox.pty.resize(terminal.pid, e2b.PtySize(rows=40, cols=120))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    terminal.wait(on_pty=output.write)
    assert b"40 120" in output.getvalue()


def test_files(sandbox):
    sandbox.files.remove("box")
    info = sandbox.files.write("box/deep/a.txt", "hello")
    assert info.path == "/home/user/box/deep/a.txt"
    assert sandbox.files.read("box/deep/a.txt") == "hello"
    assert bytes(sandbox.files.read("box/deep/a.txt", format="bytes")) == b"hello"
    assert sandbox.files.read("box/deep/a.txt", gzip=True) == "hello"
    assert sandbox.files.exists("box/deep")
    assert not sandbox.files.exists("box/none")
    entry = sandbox.files.get_info("box/deep/a.txt")
    assert (entry.owner, entry.permissions, entry.size, entry.mode) == ("user", "-rw-r--r--", 5, 0o644)
    assert sandbox.files.get_info("box/deep").owner == "user"
    assert sandbox.files.make_dir("box/new")
    assert not sandbox.files.make_dir("box/new")
    moved = sandbox.files.rename("box/deep/a.txt", "box/new/b.txt")
    assert moved.path == "/home/user/box/new/b.txt"
    assert [e.name for e in sandbox.files.list("box", depth=2)] == ["deep", "new", "b.txt"]
    sandbox.files.remove("box")
    with pytest.raises(e2b.FileNotFoundException):
        sandbox.files.read("box/new/b.txt")
    with pytest.raises(e2b.NotFoundException):
        sandbox.files.list("box")


def test_symlink_info(sandbox):
    sandbox.commands.run("mkdir -p links; cd links; echo x > target; ln -sf target link")
    info = sandbox.files.get_info("links/link")
    assert info.type == e2b.FileType.FILE
    assert info.symlink_target == "/home/user/links/target"
    assert info.permissions == "Lrwxrwxrwx"


def test_several_files_streams_and_metadata(sandbox):
    names = ["/tmp/many/ä b.txt", "/tmp/many/empty"]
    entries = [{"path": names[0], "data": "1"}, {"path": names[1], "data": b""}]
    assert [w.path for w in sandbox.files.write_files(entries)] == names
    assert sandbox.files.read(names[0]) == "1"
    assert sandbox.files.write_files([]) == []
    big = bytes(range(256)) * 8192
    sandbox.files.write("/tmp/many/big", io.BytesIO(big))
    assert b"".join(sandbox.files.read("/tmp/many/big", format="stream")) == big
    sandbox.files.write("/tmp/many/zipped", big, gzip=True)
    assert bytes(sandbox.files.read("/tmp/many/zipped", format="bytes", gzip=True)) == big
    sandbox.files.write("/home/user/meta", "x", metadata={"Kind": "test"})
    assert sandbox.files.get_info("/home/user/meta").metadata == {"kind": "test"}


def test_signed_urls(sandbox):
    import urllib.request

    sandbox.files.write("signed name.txt", "signed")
    with urllib.request.urlopen(sandbox.download_url("signed name.txt", user="user")) as answer:
        assert answer.read() == b"signed"
    url = sandbox.download_url("signed name.txt", use_signature_expiration=60)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"signed"


def test_watch_sees_exactly_three_events(sandbox):
    sandbox.files.make_dir("watched")
    watcher = sandbox.files.watch_dir("watched", include_entry=True)
    sandbox.files.write("watched/f", "x")
    time.sleep(0.3)
    events = watcher.get_new_events()
    types = [e.type for e in events]
    kinds = e2b.FilesystemEventType
    assert types == [kinds.CREATE, kinds.CHMOD, kinds.WRITE]
    assert {e.name for e in events} == {"f"}
    watcher.stop()
    with pytest.raises(e2b.NotFoundException):
        sandbox.files.watch_dir("missing")


def test_recursive_watch(sandbox):
    sandbox.files.make_dir("tree")
    watcher = sandbox.files.watch_dir("tree", recursive=True)
    sandbox.files.write("tree/a/b/f", "x")
    time.sleep(0.3)
    names = [e.name for e in watcher.get_new_events() if e.type == e2b.FilesystemEventType.CREATE]
    assert names == ["a", "a/b", "a/b/f"]
    watcher.stop()


def test_is_running(sandbox):
    assert sandbox.is_running()


def test_many_commands_at_once(sandbox):
    commands = [sandbox.commands.run(f"sleep 0.2; echo {i}", background=True) for i in range(30)]
    assert [int(c.wait().stdout) for c in commands] == list(range(30))
