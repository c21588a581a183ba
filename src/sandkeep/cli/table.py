"""The list of commands, on one page: `sandkeep --help` is made from it, without importing any of them."""

# section -> name -> (module:attribute below sandkeep.cli.commands, one line of help)
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Sandboxes": {
        "create": ("create:create", "Make a sandbox."),
        "list": ("listing:list_", "List sandboxes."),
        "show": ("show:show", "Show a sandbox, and why it is in its phase."),
        "why": ("why:why", "Say what a sandbox is doing, why, and what you can do."),
        "update": ("update:update", "Change labels, sizes or lifetime."),
        "pause": ("lifecycle:pause", "Freeze a sandbox: memory and processes stay."),
        "resume": ("lifecycle:resume", "Go on with a paused sandbox."),
        "stop": ("lifecycle:stop", "End its machine; the disk stays."),
        "start": ("lifecycle:start", "Start a stopped sandbox."),
        "wait": ("wait:wait", "Wait until a sandbox is in a phase."),
        "delete": ("delete:delete", "Delete sandboxes for good."),
    },
    "Back in time": {
        "snapshot": ("snapshot:snapshot", "Make, list, show, read and delete snapshots."),
        "rollback": ("rollback:rollback", "Go back to a snapshot."),
        "promote": ("promote:promote", "Make a fork's state its parent's."),
        "commit": ("commit:commit", "Let its next sessions start from now."),
        "diff": ("diff:diff", "Show what differs between two points in time."),
        "restore": ("restore:restore", "Put a file or folder of a snapshot back."),
        "fork": ("fork:fork", "Make sandboxes from a sandbox or its snapshot."),
        "archive": ("archive:archive", "Move a sandbox to the object store."),
        "wake": ("archive:wake", "Bring an archived sandbox back."),
        "export": ("portable:export", "Write a sandbox into one file."),
        "import": ("portable:import_", "Make a sandbox from such a file."),
        "timeline": ("timeline:timeline", "Make snapshots by rule, and keep the right ones."),
    },
    "In a sandbox": {
        "exec": ("exec:exec_", "Run a command."),
        "shell": ("shell:shell", "Open a login shell."),
        "run": ("run:run", "Run a command in a sandbox of its own, then delete it."),
        "cp": ("cp:cp", "Copy files and trees in or out."),
        "logs": ("logs:logs", "Print what its runtime and agent printed."),
        "stats": ("stats:stats", "Show what it uses."),
        "events": ("events:events", "Show what happened."),
    },
    "Templates and keys": {
        "template": ("template:template", "Build, list, show and delete templates."),
        "key": ("key:key", "Create, list and revoke API keys."),
        "node": ("node:node", "Show the node; adopt what it alone knows; its quarantine."),
        "runtimes": ("runtimes:runtimes", "Show the runtimes and what each can do."),
    },
    "This host": {
        "setup": ("host:setup", "Prepare this host, once, as root."),
        "up": ("host:up", "Start server and runner."),
        "down": ("host:down", "Stop them; sandboxes stay."),
        "demo": ("host:demo", "See persistence at work in a minute."),
        "doctor": ("host:doctor", "Say what this host can do, and what is missing."),
        "fsck": ("host:fsck", "Compare the host with the records, and mend it."),
        "backup": ("host:backup", "Save and restore the server's database."),
        "support-bundle": ("host:support_bundle", "Collect what helps to find a fault, without secrets."),
        "purge": ("host:purge", "Remove an instance and everything it made."),
        "completion": ("completion:completion", "Print the completion script for bash, zsh or fish."),
    },
}

# Started by the service manager or by `up`, not by people.
HIDDEN: dict[str, tuple[str, str]] = {
    "server": ("host:server", "Run the control plane."),
    "runner": ("host:runner", "Run the node's root daemon."),
}

_HEAD = """\
Usage: sandkeep [OPTIONS] COMMAND [ARGS]...

  Persistent sandboxes on your own machine. `sandkeep COMMAND --help` has examples.
"""

_TAIL = """\
Options (also after the command):
  --instance NAME  Which entry of the configuration file to use; else SANDKEEP_INSTANCE.
  --json           Print JSON: results on standard output, errors on standard error.
  --version        Print the version and exit.
  --help           Show this text, or that of a command.

Examples:
  sandkeep create --name dev
  sandkeep exec dev -- python3 -c 'print(1 + 1)'
  sandkeep cp -r ./src dev:/work/src

Exit codes: 0 done; 1 failed; 2 wrong usage or argument; 3 not found; 4 not allowed; 5 conflict; 6 quota or capacity;
7 not reachable; 8 too late. exec, shell and run: the command's own, 128+n after signal n; 125 when Sandkeep failed,
126 when the command cannot run, 127 when there is none.
"""


def every_command() -> dict[str, tuple[str, str]]:
    """name -> (where, help), hidden ones too."""
    return {name: row for section in COMMANDS.values() for name, row in section.items()} | HIDDEN


def help_text() -> str:
    parts = [_HEAD]
    for section, rows in COMMANDS.items():
        parts.append(f"{section}:\n" + "".join(f"  {name:<14} {text}\n" for name, (_, text) in rows.items()))
    return "\n".join([*parts, _TAIL])
