"""The released parquet files: a data set on the Hub at a pinned revision → a folder with a manifest, and its check.

In: a part of the release (train or eval), a revision, task names. Out: files as they were published, and beside them
manifest.json with data set, resolved commit and SHA-256 of each, which readers hold the files to. Says what to do by
hand where the network is closed. Knows no row and no task beyond its file name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.manifest import MANIFEST, check_file, read_manifest, write_manifest
from ditto_jax.tasks.released import PARTS, SOUL, released_files

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class FetchConfig:
    """Fetch the released parquet files of one part of the release.

    part: "train" or "eval"; the files go into a folder of that name below `output`. revision: commit, tag or branch of
    the data set; required, so that whoever repeats a run asks for the same rows. tasks: all ten if empty. repository:
    another data set with the same file names. endpoint: a mirror of the Hub; HF_ENDPOINT, or the Hub itself, if empty.
    Credentials are huggingface_hub's business (HF_TOKEN).
    """

    part: Literal["train", "eval"] = "train"
    revision: str = ""
    output: str = "soul-rows"
    tasks: tuple[str, ...] = ()
    repository: str = ""
    endpoint: str = ""

    def __post_init__(self):
        if not self.revision.strip():
            raise ConfigError(
                f"revision is not set: name the commit of {self.data_set} to fetch, as its page lists it under "
                "'History', for example --revision 0123abc...; 'main' fetches the newest and writes down which that was"
            )
        for name in self.tasks:
            released_files(name)

    @property
    def data_set(self) -> str:
        """The data set's name on the Hub."""
        return self.repository or PARTS[self.part]

    @property
    def file_names(self) -> tuple[str, ...]:
        """What is fetched."""
        return tuple(SOUL[name].file(self.part) for name in self.tasks or SOUL)

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return Path(self.output).expanduser() / self.part


def fetch(config: FetchConfig) -> Path:
    """Returns the folder that now holds the files and their manifest.

    Files that the manifest already lists for the same commit are kept if they are intact. Raises MissingInputError
    with the commands to run elsewhere if the Hub cannot be reached or has no such thing, DataError for damaged files.
    """
    commit = _resolved(config)
    folder = config.folder
    known = read_manifest(folder)
    if known is not None and (known.data_set, known.commit) != (config.data_set, commit):
        raise ConfigError(
            f"output={config.output}: {folder} already holds {known.data_set} at {known.commit}; rows of two revisions "
            "would be mixed; choose another folder, or delete this one"
        )
    for name in config.file_names:
        if known is not None and name in known.sha256 and (folder / name).is_file():
            check_file(folder / name)
            continue
        _download(config, commit, name)
    write_manifest(folder, config.data_set, commit, config.file_names)
    return folder


def check(folder: Path) -> int:
    """Returns how many files of a fetched folder are as they were fetched, which is all of them.

    Raises MissingInputError without a manifest or for an absent file, DataError for a changed one.
    """
    known = read_manifest(folder)
    if known is None:
        raise MissingInputError(f"{folder}: no {MANIFEST}; fetch the files with ditto-jax data fetch --output FOLDER")
    for name in known.sha256:
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder / name}: listed in {MANIFEST} but absent; fetch the files again")
        check_file(folder / name)
    return len(known.sha256)


def fetched_folders(folder: Path) -> list[Path]:
    """Returns the folder, or those of its parts, that have a manifest. Raises MissingInputError if none has."""
    found = [place for place in (folder, *(folder / part for part in PARTS)) if (place / MANIFEST).is_file()]
    if not found:
        raise MissingInputError(f"{folder}: no {MANIFEST} here or in {' or '.join(PARTS)}/; fetch the files first")
    return found


def _resolved(config: FetchConfig) -> str:
    """The commit that the revision stands for."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=config.endpoint or None)
    found = _asked(config, lambda: api.dataset_info(config.data_set, revision=config.revision, timeout=30.0))
    if not found.sha:
        raise DataError(f"{config.data_set}: the Hub names no commit for revision={config.revision}; name one yourself")
    return str(found.sha)


def _download(config: FetchConfig, commit: str, name: str) -> None:
    from huggingface_hub import hf_hub_download

    config.folder.mkdir(parents=True, exist_ok=True)
    _asked(
        config,
        lambda: hf_hub_download(
            config.data_set,
            name,
            repo_type="dataset",
            revision=commit,
            local_dir=config.folder,
            endpoint=config.endpoint or None,
        ),
    )


def _asked(config: FetchConfig, call: Callable[[], T]) -> T:
    """The answer of the Hub, or an error for people."""
    from huggingface_hub import errors

    # Which HTTP client the Hub's library uses changes with its version; its module of errors has the right base class.
    client_error: type[Exception] = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    try:
        return call()
    except (client_error, errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise MissingInputError(_by_hand(config, error)) from None


def _by_hand(config: FetchConfig, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    names = " ".join(config.file_names)
    return (
        f"{config.data_set} at revision {config.revision} cannot be fetched: {reason}\n"
        "check the revision, or run this where the Hub can be reached, and copy the folder here:\n"
        f"  hf download {config.data_set} {names} --repo-type dataset --revision {config.revision} "
        f"--local-dir {config.folder}\n"
        f"then set SOUL_PARQUET_DIR={config.output}; files that came so have no {MANIFEST} and are read unchecked"
    )
