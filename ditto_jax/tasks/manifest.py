"""What was fetched, beside the files: data set, commit and SHA-256 of each file, and the check against it.

In: a folder. Out: its manifest, or an error naming the file that is not what it was. A folder without a manifest is
nobody's promise and is read as it is. Fetches nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pydantic

from ditto_jax.errors import DataError
from ditto_jax.strict import is_folder_name

MANIFEST = "manifest.json"


class Manifest(pydantic.BaseModel):
    """data_set: its name on the Hub. commit: of the data set. sha256: file name → hexadecimal digest."""

    data_set: str
    commit: str
    sha256: Mapping[str, str]

    @pydantic.field_validator("sha256")
    @classmethod
    def _stays_in_the_folder(cls, sha256: Mapping[str, str]) -> Mapping[str, str]:
        for name in sha256:
            if not is_folder_name(name):
                raise ValueError(f"{name!r} is not the name of a file in this folder")
        return sha256


def read_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest of a folder, or None if it has none. Raises DataError for a damaged one."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except pydantic.ValidationError as error:
        raise DataError(f"{file}: not a manifest ({error.errors()[0]['msg']}); fetch the files again") from None


def write_manifest(folder: Path, data_set: str, commit: str, names: Iterable[str]) -> Manifest:
    """Writes down what the files are now; files that an earlier manifest of the same commit lists stay listed."""
    known = read_manifest(folder)
    kept = dict(known.sha256) if known is not None and known.commit == commit else {}
    sums = {**kept, **{name: _digest(folder / name) for name in names}}
    manifest = Manifest(data_set=data_set, commit=commit, sha256=dict(sorted(sums.items())))
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest.model_dump(), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)
    return manifest


def check_file(file: Path) -> None:
    """Returns nothing if no manifest beside `file` lists it or its digest holds. Raises DataError otherwise."""
    known = read_manifest(file.parent)
    wanted = None if known is None else known.sha256.get(file.name)
    if known is not None and wanted is not None and _digest(file) != wanted:
        raise DataError(
            f"{file}: its SHA-256 is not that in {MANIFEST} (of {known.data_set} at {known.commit}): the file has "
            "changed since it was fetched; delete it and fetch it again"
        )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
