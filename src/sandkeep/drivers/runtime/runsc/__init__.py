"""gVisor."""

from sandkeep.drivers.runtime.runsc.driver import GvisorRuntime

__all__ = ["GvisorRuntime"]
