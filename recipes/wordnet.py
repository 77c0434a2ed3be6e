"""What the nouns of WordNet 3.0 mean, to be sorted into its 26 fields (animal, artifact, food, person, ...), or as
plain texts of which the next word is to be told.

A real text set that a Debian package ships: `apt-get install wordnet-base`, or set $WORDNET to a folder with data.noun.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compressor.sources.words import Following, Words, common_words

FIRST_FIELD = 3
"""WordNet's number of the first field of nouns (tops, act, animal, ...)."""
JUDGE, HELD_OUT = 10_000, 5_000
WORDS, LENGTH = 8_000, 24
SPOKEN = 4_000
"""Words of the texts whose next word is told."""


def definitions(path: Path) -> dict[str, int]:
    """Definition -> field 0..25, without examples; definitions that stand in several fields are left out."""
    found: dict[str, int] = {}
    several = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        synset, _, gloss = line.partition(" | ")
        text, field = gloss.split(";")[0].strip(), int(synset.split()[1]) - FIRST_FIELD
        if found.setdefault(text, field) != field:
            several.add(text)
    return {text: field for text, field in found.items() if text not in several}


def glosses() -> dict[str, Any]:
    """Token numbers and masks (N, 24) with fields, as parts: 10,000 judge, 5,000 calibrate and tune, the others train.

    In the order of a hash of the text. The vocabulary is that of the training part.
    """
    return _parts(WORDS, lambda words: lambda text, field: (words(text), torch.tensor(field)))


def sentences() -> dict[str, Any]:
    """The same texts in a smaller vocabulary, with the word that follows each as its label, (N, 24)."""
    return _parts(SPOKEN, lambda words: lambda text, _: Following(words)(text))


def _parts(vocabulary: int, preparation: Callable[[Words], Callable[[str, int], Any]]) -> dict[str, Any]:
    path = Path(os.environ.get("WORDNET", "/usr/share/wordnet")) / "data.noun"
    if not path.is_file():
        raise SystemExit("apt-get install wordnet-base, or set WORDNET to a folder with data.noun")
    rows = sorted(definitions(path).items(), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    cuts = {"judge": rows[:JUDGE], "calibrate": rows[JUDGE : JUDGE + HELD_OUT], "train": rows[JUDGE + HELD_OUT :]}
    prepare = preparation(Words(common_words((text for text, _ in cuts["train"]), vocabulary), LENGTH))
    seen: set[bytes] = set()

    def part(rows: list[tuple[str, int]]) -> Any:
        found = []
        for text, field in rows:
            tokens, label = prepare(text, field)
            key = tokens["input_ids"].numpy().tobytes()
            if key not in seen:  # texts that differ in rare words only are one input
                found.append((tokens, label))
                seen.add(key)
        inputs = {name: torch.stack([tokens[name] for tokens, _ in found]) for name in found[0][0]}
        return inputs, torch.stack([label for _, label in found])

    return {name: part(rows) for name, rows in cuts.items()}
