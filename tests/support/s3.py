"""An S3 server on loopback: rclone, over a folder."""

import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class S3:
    url: str
    folder: Path
    options: dict[str, str]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Serves the bucket `archives`, whose objects are files below `folder`/archives."""
    (folder / "archives").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    rclone = shutil.which("rclone")
    assert rclone, "rclone comes with the test dependencies"
    server = subprocess.Popen(
        [rclone, "serve", "s3", str(folder), f"--addr=127.0.0.1:{port}", f"--auth-key={key},{secret}", "--config="],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            assert server.poll() is None, "rclone ended"
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        options = {
            "endpoint": f"http://127.0.0.1:{port}",
            "region": "local",
            "access_key_id": key,
            "secret_access_key": secret,
            "virtual_hosted_style_request": "false",
        }
        yield S3("s3://archives", folder / "archives", options)
    finally:
        server.kill()
        server.wait()
