"""runc: containers on the host's own kernel, for trusted code."""

from sandkeep.drivers.runtime.runc.driver import RuncRuntime

__all__ = ["RuncRuntime"]
