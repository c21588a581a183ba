"""systemd units, for hosts where systemd is pid 1. Pure; `systemd` installs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DASH = r"\x2d"
"""How systemd writes a dash that is part of a name."""
HOLDER = "holder"
"""Group below the sandboxes' unit for the process that keeps it there."""
_SUBGROUPS_SINCE = 254
"""The version of systemd that starts a unit's process in a group below the unit's."""


@dataclass(frozen=True)
class UnitFacts:
    """python: the interpreter of the installation; user: who the server runs as; capabilities: what the runner keeps,
    by names such as sys_admin; systemd: its version; watchdog: seconds of silence after which a daemon is started again."""

    instance: str
    python: Path
    user: str
    capabilities: Sequence[str]
    systemd: int
    watchdog: float


@dataclass(frozen=True)
class UnitNames:
    """Of one instance. sandboxes: the unit that machines' control groups lie in; slice: what an operator limits all of
    them by, and nothing else is in it. A dash in a slice's name means a slice within a slice, so one in the instance's
    name is escaped."""

    instance: str

    @property
    def runner(self) -> str:
        return f"sandkeep-{self.instance}-runner.service"

    @property
    def server(self) -> str:
        return f"sandkeep-{self.instance}-server.service"

    @property
    def sandboxes(self) -> str:
        return f"sandkeep-{self.instance}-sandboxes.service"

    @property
    def slice(self) -> str:
        return f"sandkeep-{self.instance.replace('-', DASH)}.slice"

    @property
    def all(self) -> str:
        """The slice that systemd makes by itself around those of all instances."""
        return "sandkeep.slice"

    @property
    def services(self) -> tuple[str, str, str]:
        """In the order of their start."""
        return (self.sandboxes, self.runner, self.server)

    @property
    def group(self) -> str:
        """Path of the sandboxes' control group below each hierarchy's root."""
        return f"{self.all}/{self.slice}/{self.sandboxes}"


def units(facts: UnitFacts) -> dict[str, str]:
    """File name -> content. Ending a daemon ends no sandbox: KillMode=process, and machines live in the control group
    of a unit of their own, which systemd delegates to us and which a process that only sleeps keeps there, in a group
    below it: into one that hands down controllers the kernel lets no process, and the unit could not be started again
    while there are sandboxes (so it is before systemd 254, where they go on without it). What `up` makes in /run is
    gone after a reboot, when systemd alone starts the daemons: each has its folder there as RuntimeDirectory. However
    often one of them ends, it is started again: after five ends within ten seconds systemd would leave it dead."""
    names = UnitNames(facts.instance)
    command = f"{facts.python} -m sandkeep.cli.main"
    subgroup = f"\nDelegateSubgroup={HOLDER}" if facts.systemd >= _SUBGROUPS_SINCE else ""
    return {
        names.slice: f"""[Unit]
Description=Sandkeep sandboxes of instance {facts.instance}
""",
        names.sandboxes: f"""[Unit]
Description=Sandkeep control groups of the sandboxes of instance {facts.instance}
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart=/usr/bin/sleep infinity
Slice={names.slice}
Delegate=yes{subgroup}
KillMode=process
Restart=always
RestartSec=1
OOMScoreAdjust=-1000
TasksMax=infinity

[Install]
WantedBy=multi-user.target
""",
        names.runner: f"""[Unit]
Description=Sandkeep runner of instance {facts.instance}
After=network.target local-fs.target {names.sandboxes}
Wants={names.sandboxes}
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart={command} runner --instance {facts.instance}
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
WatchdogSec={facts.watchdog:g}
WatchdogSignal=SIGKILL
NotifyAccess=main
TasksMax=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
""",
        names.server: f"""[Unit]
Description=Sandkeep server of instance {facts.instance}
After=network.target {names.runner}
Wants={names.runner}
StartLimitIntervalSec=0

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
WatchdogSec={facts.watchdog:g}
WatchdogSignal=SIGKILL
NotifyAccess=main
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
