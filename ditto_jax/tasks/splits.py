"""Groups → splits: which stories, conversations, books or topics are for training, and proof that none is in two.

In: examples and the groups that they belong to. Out: the examples of a split, chosen by a hash of the group so that
every machine agrees and a growing file moves nothing; or a DataError that names what two splits share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from ditto_jax.errors import DataError
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.types import Example

SPLITS = ("train", "validation", "test")
_SHARES = {"train": range(70), "validation": range(70, 80), "test": range(80, 100)}  # of a hundred


def group_name(kind: str, text: str) -> str:
    """Returns the identity of a group, such as "book:dracula": case, spaces and punctuation make no difference.

    Long texts become a digest, so that the identity of a story is short and shows nothing of it.
    """
    plain = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    if len(plain) > 80:
        plain = hashlib.sha256(plain.encode()).hexdigest()[:16]
    return f"{kind}:{plain}"


def split_of(group: str) -> str:
    """Returns the split that a group belongs to: 70 % train, 10 % validation, 20 % test, by its hash."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
    return next(split for split, share in _SHARES.items() if place in share)


def of_split(examples: Sequence[Example], group: Callable[[Example], str], split: str) -> list[Example]:
    """Returns the examples whose group belongs to `split`. Raises ConfigError for an unknown split."""
    check_choice("source.split", split, SPLITS)
    return [example for example in examples if split_of(group(example)) == split]


def require_disjoint(train: Iterable[str], held_out: Iterable[str], where: str) -> None:
    """Returns nothing; raises DataError if a group of `train` is also in `held_out`; `where` names the two."""
    shared = sorted(set(train) & set(held_out))
    if shared:
        some = ", ".join(shared[:3]) + (" …" if len(shared) > 3 else "")
        raise DataError(
            f"{where}: {len(shared)} group(s) are in both ({some}); use other splits or files, or set "
            "evaluation.allow_overlap to true if the figures are not to be read as held-out"
        )
