"""systemd units, for hosts where systemd is pid 1. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class UnitFacts:
    """python: the interpreter of the installation; user: who the server runs as; capabilities: what the runner keeps,
    by names such as sys_admin."""

    instance: str
    python: Path
    user: str
    capabilities: Sequence[str]


def unit_names(instance: str) -> tuple[str, str, str]:
    return (
        f"sandkeep-{instance}-runner.service",
        f"sandkeep-{instance}-server.service",
        f"sandkeep-{instance}.slice",
    )


def units(facts: UnitFacts) -> dict[str, str]:
    """File name -> content. Ending a daemon ends no sandbox: KillMode=process, and machines live in groups of their own
    below the delegated slice. What `up` makes in /run is gone after a reboot, when systemd alone starts the daemons: each
    has its folder there as RuntimeDirectory."""
    runner, server, slice_name = unit_names(facts.instance)
    command = f"{facts.python} -m sandkeep.cli.main"
    return {
        slice_name: f"""[Unit]
Description=Sandkeep sandboxes of instance {facts.instance}
""",
        runner: f"""[Unit]
Description=Sandkeep runner of instance {facts.instance}
After=network.target local-fs.target

[Service]
Type=simple
ExecStart={command} runner --instance {facts.instance}
Slice={slice_name}
Delegate=yes
KillMode=process
Restart=always
RestartSec=1
RuntimeDirectory=sandkeep/{facts.instance}
RuntimeDirectoryMode=0711
RuntimeDirectoryPreserve=yes
CapabilityBoundingSet={" ".join(f"CAP_{name.upper()}" for name in facts.capabilities)}
UMask=0077
LimitCORE=1
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
""",
        server: f"""[Unit]
Description=Sandkeep server of instance {facts.instance}
After=network.target {runner}
Wants={runner}

[Service]
Type=simple
ExecStart={command} server --instance {facts.instance}
User={facts.user}
Group={facts.user}
KillMode=process
Restart=always
RestartSec=1
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
UMask=0077
LimitCORE=1
LimitNOFILE=1048576
ProtectSystem=strict
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
PrivateDevices=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
RuntimeDirectory=sandkeep/{facts.instance}/server
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
ReadWritePaths=/var/lib/sandkeep/{facts.instance}/server
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
""",
    }
