"""How much of the book's dialogue a played one shares, in words: BLEU-4 and ROUGE-L, reported and never rewarded.

In: texts without thoughts and names. Out: corpus BLEU by sacrebleu (Papineni et al., 2002) and the F1 of the longest
common subsequence (Lin, 2004). Metric names carry the tokenizer.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable, Sequence

from ditto_jax.tasks.lexical import TOKENIZER

BLEU = "bleu4_13a_lowercase"
ROUGE_L = f"rouge_l_f1_{TOKENIZER}"


def bleu(played: Sequence[str], references: Sequence[str]) -> float:
    """Returns corpus BLEU-4 in 0 … 1 of lower-cased texts, sacrebleu's tokenizer 13a, unsmoothed; 0 without texts."""
    if not played:
        return 0.0
    import sacrebleu  # here alone: only evaluation needs it

    metric = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    return metric.corpus_score(list(played), [list(references)]).score / 100.0


def rouge_l(played: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """Returns the F1 of the longest common subsequence of two token sequences, 0 if one of them is empty."""
    common = _common_subsequence(played, reference)
    return 2.0 * common / (len(played) + len(reference)) if common else 0.0


def _common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence: a row of the table is one integer (Hyyrö, 2004)."""
    places: dict[Hashable, int] = collections.defaultdict(int)
    for i, token in enumerate(a):
        places[token] |= 1 << i
    all_places = (1 << len(a)) - 1
    row = all_places
    for token in b:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & all_places
    return len(a) - row.bit_count()
