"""One small hierarchy of errors, each with the exit code that the command line returns for it.

Messages are for the person who meets them: the setting, its value, the rule, and a value that works.
"""

from __future__ import annotations


class DittoError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


def error_named(name: str) -> type[DittoError]:
    """Returns the class of this name, `DittoError` for any other: what one process met, another raises again."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, DittoError) else DittoError


class ConfigError(DittoError, ValueError):
    """A flag, YAML key or combination of settings that cannot work."""

    exit_code = 2


class MissingInputError(DittoError, FileNotFoundError):
    """Data, a model or a credential that was named does not exist; nothing was started."""

    exit_code = 3

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DataError(DittoError, ValueError):
    """A data row is malformed: the message names file, row and field."""

    exit_code = 3


class ModelError(DittoError, ValueError):
    """A model folder is unsupported, incomplete or damaged."""

    exit_code = 3


class JudgeUnavailableError(DittoError, ConnectionError):
    """The judge cannot be used at all (at start), or failed more often than the run permits."""

    exit_code = 1


class RunDirectoryError(DittoError, OSError):
    """A run directory cannot be written, or belongs to another run."""

    exit_code = 2


class GateFailed(DittoError):
    """The command finished but a `--fail_under` or `--fail_on` gate did not hold."""

    exit_code = 4


class BudgetSpentError(DittoError):
    """A `max_cost` is reached; the state is saved, and the same command with a larger one continues."""

    exit_code = 5


class Preempted(DittoError):
    """SIGTERM arrived; the state is saved and the same command continues."""

    exit_code = 75


class ClusterError(DittoError, ConnectionError):
    """The other processes of a run cannot be joined."""

    exit_code = 1
