"""The built agent as pid 1 of its own pid, mount and host name spaces. Nothing of the host's /etc, /run, /home or
/usr/local/share is touched: the agent sees private copies. Nor can it set the clock, which is the host's."""

import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

TOKEN = "token-of-the-agent-tests"

# $1 is a scratch folder, the rest is the agent's command line.
BOOT = """
set -e
scratch=$1; shift
cp -a /etc "$scratch/etc"
sed -i '/^user:/d; /:1000:/d' "$scratch/etc/passwd" "$scratch/etc/group"
echo 'user:x:1000:1000::/home/user:/bin/bash' >> "$scratch/etc/passwd"
echo 'user:x:1000:' >> "$scratch/etc/group"
mount --bind "$scratch/etc" /etc
mount -t tmpfs run /run
mount -t tmpfs home /home
mount -t tmpfs share /usr/local/share
mkdir -p /home/user && chown 1000:1000 /home/user
exec "$@"
"""


class Agent:
    """A running agent. `pid` is the host's number for it."""

    def __init__(self, binary: str, scratch: pathlib.Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._outer = subprocess.Popen(
            [
                "setpriv",
                "--bounding-set=-sys_time",
                "unshare",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ]
            + ["sh", "-c", BOOT, "boot", str(scratch), binary, "--port", str(self.port)],
            env={"PATH": os.environ["PATH"], "SECRET_OF_THE_HOST": "1"},
        )
        self._await()
        children = pathlib.Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self.pid = int(children.read_text().split()[0])

    def _await(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if self.call("GET", "/health", token=None)[0] == 204:
                    return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("the agent does not answer")

    def call(
        self, method: str, path: str, body: object = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, bytes]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["X-Access-Token"] = token
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def json(self, method: str, path: str, body: object = None) -> dict:
        status, text = self.call(method, path, body, Accept="application/json", Content_Type="application/json")
        assert status == 200, (status, text)
        return json.loads(text)

    def exec(self, script: str, **more: object) -> dict:
        return self.json("POST", "/exec", {"cmd": "/bin/sh", "args": ["-c", script], **more})

    def resident(self) -> int:
        """Bytes of memory that the agent itself uses."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise RuntimeError("no VmRSS")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> None:
        self._outer.kill()
        self._outer.wait()
