"""What a root file system must not contain before a runtime touches it as root."""

from pathlib import Path

from sandkeep.domain.errors import InvalidArgument

_FOLDERS = ("dev", "proc", "sys", "etc", "run", "tmp", ".sandkeep")


def check_root(root: Path) -> None:
    """Raises InvalidArgument when a folder under which the runtime mounts is something else than a folder. runc before
    1.3.6 follows a /dev that is a symbolic link and makes device files in the host folder that it names."""
    for name in _FOLDERS:
        path = root / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InvalidArgument(
                f"/{name} of the root file system is not a folder",
                hint="a template must have it as a real folder or not at all",
                path=f"/{name}",
            )
