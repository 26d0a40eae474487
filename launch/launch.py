"""`ditto-jax launch`: the same command on more machines: scripts are written and shown, and run when that was agreed.

In: the words after the verb: where (`launch/targets`), and those of the verb that is started. Out: an exit code: of the
run, where it is waited for. Reads no credentials; without --dry_run what will run is printed and asked about first.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from launch.targets.words import split

_DRY_RUN = Annotated[
    tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="write the files and print them; run nothing")
]
_YES = Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="run it without being asked")]
# Read by `split`; here for --help.
_LAUNCH_CONFIG = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="FILE", help="YAML with settings of the launcher, as --config has the run's")
]


def main(args: list[str], command: list[str]) -> int:
    """Writes the files; prints them (--dry_run), or runs them after a yes. Raises ConfigError for what cannot work."""
    from launch.flags import parse
    from launch.targets.config import LaunchConfig
    from launch.targets.job import make_job
    from launch.targets.render import render

    own, words = split(args)
    about = "Start a verb elsewhere, or as several processes here. Flags that are not listed are those of the verb."
    options = [("dry_run", _DRY_RUN, False), ("yes", _YES, False), ("launch_config", _LAUNCH_CONFIG, ())]
    parsed = parse(LaunchConfig, own, "launch", about, options)
    config = parsed.config
    job = make_job(config, words)
    rendering = render(config, job, free_port() if config.target == "local" else 0)
    folder = Path(config.folder or f"launched/{job.name}")
    _write(folder, rendering.files, config.install.wheel)
    _tell(folder, rendering, whole=parsed.options["dry_run"])
    if parsed.options["dry_run"]:
        return 0
    _require_agreement(parsed.options["yes"])
    return _run(folder, rendering, config.local.grace_s)


def _write(folder: Path, files, wheel: str) -> None:
    from ditto_jax.errors import ConfigError, MissingInputError

    if wheel and not Path(wheel).is_file():
        raise MissingInputError(f"install.wheel={wheel}: no such file; `make wheel` builds one in dist/")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (*folder.glob("process_*.sh"), *folder.glob("host_*.sh")):
            stale.unlink()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            if name.endswith((".sh", ".sbatch")):
                (folder / name).chmod(0o755)
        if wheel:
            shutil.copy(wheel, folder)
    except OSError as error:
        raise ConfigError(f"folder={folder}: cannot be written ({error.strerror}); choose another --folder") from error


def _tell(folder: Path, rendering, whole: bool) -> None:
    for name, text in rendering.files.items():
        if whole:
            print(f"----- {folder / name}\n{text.rstrip()}\n")
        else:
            print(f"written: {folder / name}")
    for command in (*rendering.first, *rendering.together):
        print(f"{'would run' if whole else 'runs'}: {shlex.join([*command[:-1], str(folder / command[-1])])}")
    for note in rendering.notes:
        print(f"note: {note}")


def _require_agreement(yes: bool) -> None:
    """Returns once a person or --yes has agreed; raises ConfigError where neither has."""
    from ditto_jax.errors import ConfigError

    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nothing was run: without a terminal to ask at, add --yes to run it, or --dry_run to look")
    if input("run it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was run; the files stay, and run.sh or the commands above start it")


def _run(folder: Path, rendering, grace_s: float) -> int:
    from launch.supervisor import supervise

    for command in rendering.first:
        code = subprocess.run(_in(folder, command)).returncode
        if code:
            return code if code > 0 else 128 - code
    if not rendering.together:
        return 0
    return supervise([_in(folder, command) for command in rendering.together], grace_s)


def _in(folder: Path, command: tuple[str, ...]) -> list[str]:
    return [*command[:-1], str(folder / command[-1])]


def free_port() -> int:
    """Returns a port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
