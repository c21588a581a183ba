"""What to do about an error of the agent's, which knows of no hints. For the SDK and the server, where its errors become ours."""

_HINTS = (
    ("invalid username", "name a user that the sandbox has: getent passwd, in it, lists them; useradd makes one"),
    ("cwd '", "make the folder first, or name another one with --cwd (over HTTP: cwd)"),
    ("executable file not found", "check its name, or install it in the sandbox; a shell line needs: sh -c '...'"),
    ("no such file", "check the path; a script also needs the interpreter that its first line names"),
    ("permission denied", "make it executable (chmod +x), or run it as another user with --user (over HTTP: user)"),
    (
        "exec format error",
        "it is no program for this machine, or a script whose first line does not name its interpreter",
    ),
)
"""(Part of a message, hint). The first that fits counts."""
_STARTING = "error starting process"


def hint_for(message: str) -> str | None:
    """Of an error that starts no process, else None: what a file operation says explains itself."""
    if not message.startswith(("invalid username", "cwd '", _STARTING)):
        return None
    found = next((hint for part, hint in _HINTS if part in message), None)
    return found or "sandkeep exec NAME -- ls -l FILE shows what is there"
