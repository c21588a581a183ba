"""`sudo` inside, on both runtimes: the account `user` becomes root, others do not, and what sudo promises holds."""

import pytest

from sandkeep.sdk import Client, Sandbox
from support.instance import until


@pytest.fixture
def sandbox(client: Client, runtime: str) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client)  # type: ignore[arg-type]


def test_the_user_becomes_root(sandbox: Sandbox) -> None:
    done = sandbox.exec(
        "sudo -n sh -c 'id -u; cat; echo wrong >&2; exit 7' | cat; exit ${PIPESTATUS[0]}", stdin="given\n"
    )
    assert (done.stdout, done.stderr, done.exit_code) == ("0\ngiven\n", "wrong\n", 7)
    assert sandbox.exec("cd /var/tmp && sudo pwd").stdout == "/var/tmp\n"
    assert sandbox.exec("sudo -u nobody id -un").stdout == "nobody\n"
    assert sandbox.exec("bash -lc 'sudo id -u'").stdout == "0\n", "also in a login shell"
    written = (
        "sudo install -m 600 /dev/null /etc/secret; sudo tee /etc/secret >/dev/null; sudo stat -c %U:%a /etc/secret"
    )
    assert sandbox.exec(written, stdin="x").stdout == "root:600\n"
    assert sandbox.exec("cat /etc/secret").exit_code != 0


def test_nobody_else_does(sandbox: Sandbox) -> None:
    sandbox.exec(["useradd", "--create-home", "guest"], user="root")
    refused = sandbox.exec("sudo -n id -u", user="guest")
    assert refused.exit_code != 0
    assert "0" not in refused.stdout
    assert refused.stderr.startswith("sudo:")
    rule = "guest ALL=(ALL) NOPASSWD: /usr/bin/id"
    sandbox.exec(f"echo '{rule}' > /etc/sudoers.d/guest && chmod 440 /etc/sudoers.d/guest", user="root")
    assert sandbox.exec("sudo -n cat /etc/shadow", user="guest").exit_code != 0, "one command is not every command"


_FORGE = """
import array, json, os, socket, struct, sys
s = socket.socket(socket.AF_UNIX); s.connect("\\0sandkeep-sudo")
body = json.dumps({"args": ["-n", "id", "-u"], "env": [], "dir": "/"}).encode()
beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
if sys.argv[1] == "forged":
    beside.append((socket.SOL_SOCKET, 2, struct.pack("3i", os.getpid(), 0, 0)))
try:
    s.sendmsg([struct.pack(">I", len(body))], beside)
except PermissionError:
    sys.exit("the kernel refused")
s.sendall(body)
print(s.makefile("rb").read()[4:].decode())
"""


def test_who_asks_is_the_kernels_word(client: Client) -> None:
    """On gVisor the agent runs sudo for whoever may: nobody can say that he is somebody else."""
    sandbox = Sandbox.create(template="test", memory="256MiB", client=client)
    sandbox.exec(["useradd", "--create-home", "guest"], user="root")
    forged = sandbox.exec(["python3", "-c", _FORGE, "forged"], user="guest")
    assert (forged.exit_code, forged.stderr) == (1, "the kernel refused\n")
    silent = sandbox.exec(["python3", "-c", _FORGE, "silent"], user="guest")
    assert "may not" in silent.stdout


def sleeps(sandbox: Sandbox) -> bool:
    return sandbox.exec("cat /proc/[1-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '\\bsleep 987 '").exit_code == 0


def test_signals_and_ends_pass_through(sandbox: Sandbox) -> None:
    killed = sandbox.exec("sudo sh -c 'kill -TERM $$'")
    assert killed.exit_code == 128 + 15
    told = sandbox.exec("timeout -s INT 1 sudo sh -c 'trap \"echo told; exit 3\" INT; while :; do sleep 0.05; done'")
    assert "told" in told.stdout
    sleeping = sandbox.start_process(["sudo", "sleep", "987"])
    until(lambda: sleeps(sandbox))
    sleeping.kill()
    until(lambda: not sleeps(sandbox))


def test_a_terminal(sandbox: Sandbox) -> None:
    """A shell of root's on a terminal of its own, with job control, of the same size."""
    code = (
        "import os, pty, sys; pid, fd = pty.fork();"
        "pid or os.execvp('sudo', ['sudo', 'bash', '--norc', '-i']);"
        "os.write(fd, b'id -u; tty; stty size; exit 4\\n');"
        "\nwhile True:\n try: data = os.read(fd, 4096)\n except OSError: break\n"
        " if not data: break\n sys.stdout.buffer.write(data)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    done = sandbox.exec(["python3", "-c", code], timeout=30)
    assert done.exit_code == 4, done.stdout + done.stderr
    lines = done.stdout.replace("\r", "").split("\n")
    assert "0" in lines
    assert any(line.startswith("/dev/pts/") for line in lines)
    assert "no job control" not in done.stdout


def test_packages_are_installed_with_it(sandbox: Sandbox) -> None:
    made = (
        "mkdir -p p/DEBIAN p/opt/thing && printf 'Package: thing\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\n"
        "Description: x\\n' > p/DEBIAN/control && echo 1 > p/opt/thing/file && dpkg-deb -b p thing.deb"
    )
    assert sandbox.exec(made).exit_code == 0
    done = sandbox.exec("sudo dpkg -i thing.deb && sudo chown user /opt/thing/file && stat -c %U /opt/thing/file")
    assert done.stdout.endswith("user\n"), done.stderr
    sandbox.stop()
    sandbox.start()
    assert sandbox.exec("dpkg -s thing | grep Status; stat -c %U /opt/thing/file").stdout == (
        "Status: install ok installed\nuser\n"
    )
