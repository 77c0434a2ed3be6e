"""Texts -> token numbers of one length with a mask: the tokenizer of Hugging Face's that a network was trained with,
or a plain vocabulary of words; and, for networks that predict the next token, that token as the label of each."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from compressor.algebra.answers import LEFT_OUT
from compressor.errors import DataError, SourceError
from compressor.sources.built import needed, short
from compressor.sources.network import impatient

LENGTH = 128
"""Tokens of a text, unless asked for otherwise or the tokenizer takes fewer: shorter texts are padded, longer cut."""
VOCABULARY_LIMIT = 2**24
"""Bytes of a vocabulary's file at most."""
PADDING, UNKNOWN, START = 0, 1, 2
"""Numbers that are no word's; every text begins with START, as classifiers of BERT's kind read the first place."""

_WORD = re.compile(r"\w+|[^\w\s]")
_MOST_LETTERS = 100


@dataclass(frozen=True)
class Following:
    """Text -> its tokens, and the token that follows each, (length,) int64: LEFT_OUT at the last one and at padding.

    A text of one token has nothing to predict: give those that `predictable` names.
    """

    tokens: Words | LibraryTokens

    def __call__(self, text: str) -> tuple[dict[str, Tensor], Tensor]:
        """The numbers of one text, and its labels."""
        found = self.tokens(text)
        labels = torch.full_like(found["input_ids"], LEFT_OUT)
        labels[:-1] = found["input_ids"][1:].masked_fill(found["attention_mask"][1:] == 0, LEFT_OUT)
        return found, labels

    def predictable(self, texts: Iterable[Any], where: str) -> list[int]:
        """Places of the texts of two words and more (what is no text is left to who reads it). DataError for none."""
        found = [n for n, text in enumerate(texts) if not isinstance(text, str) or len(text.split(maxsplit=2)) > 1]
        if not found:
            raise DataError(where, "texts of one word", "texts of two words at least", "give sentences to predict.")
        return found


class Words:
    """Lower-cased words and signs by their place in `vocabulary`, from 3 on; 0 pads, 1 is an unknown word, 2 begins.

    Needs no package. The same vocabulary in the same order is part of the network that was trained with it.
    """

    def __init__(self, vocabulary: Sequence[str], length: int = LENGTH) -> None:
        self.length, self.size = length, len(vocabulary) + 3
        self._numbers = {word: place for place, word in enumerate(vocabulary, 3)}

    def __call__(self, text: str) -> dict[str, Tensor]:
        """The numbers of one text."""
        found = [START, *(self._numbers.get(word, UNKNOWN) for word in words_of(text))][: self.length]
        return _padded(found, self.length, PADDING)


class LibraryTokens:
    """A tokenizer of transformers, padded on the right to `length`."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self.length, self.size = tokenizer, length, len(tokenizer)
        self._padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.classes: Mapping[str, int] | None = None
        """Numbers of the classes of the network that the texts are for, by their words."""

    def __call__(self, text: str) -> dict[str, Tensor]:
        """The numbers of one text."""
        found = self._tokenizer(text, truncation=True, max_length=self.length)["input_ids"]
        return _padded(found, self.length, self._padding)


TextReader = Words | LibraryTokens | Following
"""What makes numbers of texts."""


@overload
def resized(tokens: Following, length: int) -> Following: ...
@overload
def resized(tokens: Words | LibraryTokens, length: int) -> Words | LibraryTokens: ...
def resized(tokens: TextReader, length: int) -> TextReader:
    """The same with texts of another length."""
    if isinstance(tokens, Following):
        return Following(resized(tokens.tokens, length))
    made = copy.copy(tokens)
    made.length = length
    return made


def words_of(text: str) -> list[str]:
    """Words and signs of a text, lower-cased."""
    return [word[:_MOST_LETTERS] for word in _WORD.findall(text.lower())]


def common_words(texts: Iterable[str], most: int) -> list[str]:
    """The `most` frequent words of these texts, most frequent first, equally frequent ones by the alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]


def tokens_of(name: str, length: int | None, base: Path, where: str) -> Words | LibraryTokens:
    """The tokenizer that `name` means: a `.txt` file with one word in each line, a folder as transformers saves one, or
    a name in its cache. No code of a hub runs. Raises SourceError for what cannot be found or read.
    """
    path = base / Path(name).expanduser()
    if path.suffix == ".txt":
        return Words(_vocabulary(path, where), length or LENGTH)
    return library_tokens(str(path) if path.is_dir() else name, length, where)


def library_tokens(name: str, length: int | None, where: str) -> LibraryTokens:
    """A tokenizer of transformers from a folder, or a name in its cache. SourceError where there is none."""
    transformers = needed("transformers", "hf", where)
    try:
        with impatient():
            found = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            where, f"tokenizer {name!r}: {short(error)}", "a folder that a tokenizer was saved to, a cached name, or a "
            ".txt file with a word in each line", "tokenizer.save_pretrained(FOLDER) where the network was trained.",
        ) from error  # fmt: skip
    return LibraryTokens(found, length or min(LENGTH, found.model_max_length))


def _vocabulary(path: Path, where: str) -> list[str]:
    expected = f"a text file of at most {VOCABULARY_LIMIT:,} bytes with a word in each line"
    try:
        with path.open("rb") as file:
            content = file.read(VOCABULARY_LIMIT + 1)
        words = content.decode("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise SourceError(where, f"vocabulary {path}: {short(error)}", expected, "check the path.") from error
    if len(content) > VOCABULARY_LIMIT or not words or len(set(words)) < len(words) or "" in words:
        got = f"vocabulary {path} of {len(content):,} bytes, {len(words)} lines, {len(set(words))} different ones"
        raise SourceError(where, got, f"{expected}, none twice", "write it as the network was trained with it.")
    return words


def _padded(numbers: Sequence[int], length: int, padding: int) -> dict[str, Tensor]:
    ids = torch.full((length,), padding, dtype=torch.int64)
    mask = torch.zeros(length, dtype=torch.int64)
    ids[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    mask[: len(numbers)] = 1
    return {"input_ids": ids, "attention_mask": mask}
