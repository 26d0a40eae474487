"""Run by `make wheel-check` with the interpreter into which the built wheel was installed, outside the checkout.

Fails if a package comes from the checkout, if a module cannot be imported, or if data files did not travel along.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

# What extras install, and the rooms that may need it.
EXTRAS = {"starlette", "uvicorn", "llguidance"}
SERVERS = ("ditto_jax.serving.", "ditto_jax.judge.person.")


def main(checkout: Path) -> None:
    imported = 0
    for name in ("model", "ditto_jax", "launch"):
        package = importlib.import_module(name)
        assert Path(str(package.__file__)).is_relative_to(sys.prefix), f"{name} comes from {package.__file__}"
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                try:
                    importlib.import_module(module.name)
                except ModuleNotFoundError as error:
                    if error.name not in EXTRAS or not module.name.startswith(SERVERS):
                        raise
                imported += 1
    for heavy in ("tensorflow", "torch"):
        assert heavy not in sys.modules, f"importing the packages imported {heavy}"

    from ditto_jax.config_io import find_config
    from ditto_jax.policy import PACKAGED

    presets = sorted(path.name for path in (checkout / "configs").glob("*.yaml"))
    for preset in presets:
        assert find_config(preset).is_relative_to(sys.prefix), preset
    shipped = sorted(path.relative_to(PACKAGED) for path in PACKAGED.rglob("*") if path.is_file())
    source = checkout / "ditto_jax" / "policies"
    assert shipped == sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())

    for folder in ("templates", "report/templates", "report/vendor", "evaluation/published"):
        here, there = checkout / "ditto_jax" / folder, PACKAGED.parent / folder
        files = [path.relative_to(here) for path in here.rglob("*") if path.is_file()]
        assert files and all((there / file).is_file() for file in files), f"{folder} did not travel along"
    scripts = {path.name for path in (checkout / "launch" / "targets" / "templates").glob("*.j2")}
    templates = importlib.import_module("launch.targets.templates").FOLDER
    assert scripts and scripts == {path.name for path in templates.iterdir()}

    program = Path(sys.prefix) / "bin" / "ditto-jax"
    assert any(entry.name == "ditto-jax" for entry in entry_points(group="console_scripts"))
    for words in (["--help"], ["--version"], ["train", "--config", "quickstart.yaml", "--print_config"]):
        subprocess.run([program, *words], check=True, stdout=subprocess.DEVNULL)
    print(f"ditto-jax {version('ditto-jax')}: {imported} modules, {len(presets)} presets, {len(shipped)} policy files")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
