"""CLIP's tokenizer, fast: captions → token ids equal to open_clip's `SimpleTokenizer`, for any string.

Speed comes from three exact short cuts.  Printable ASCII without "&" is not given to ftfy, which would
change nothing.  Words are looked up in a cache of their ids.  A batch becomes one array at the end.
Unknown words go to the BPE of Hugging Face's `tokenizers`, loaded with the vocabulary file that open_clip
installs (open_clip itself is not imported).

Elsewhere: caption choice (`augment.py` draws it), packing of tokens (`packing.py`).
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.beton.fields import CONTEXT_LENGTH

START, END = 49406, 49407
_MERGES = 49152 - 256 - 2
_CACHED_LENGTH = 32  # characters; longer words are rare and are not kept

_WORDS = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|"
_ascii_words = re.compile(_WORDS + r"[a-z]+|[0-9]|[^\sa-z0-9]+").findall  # for lowercase ASCII
_plain = re.compile(r"[\t\n\r -%'-~]*").fullmatch  # ASCII without "&" and control characters


def clean(text: str) -> str:
    """ftfy, HTML entities unescaped twice, whitespace collapsed, lowercase: as open_clip's tokenizer."""
    if not _plain(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


# -- tokens -----------------------------------------------------------------------------------


def vocabulary_file() -> Path:
    """open_clip's BPE merges; ValueError when open_clip is not installed."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("open_clip is not installed; pip install open_clip_torch")
    return Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"


@cache
def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, in the vocabulary's order."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


class Words(dict):
    """word → its token ids; a missing word is encoded and remembered while there is room.

    capacity: words; the default takes a few tens of MB.
    """

    def __init__(self, capacity: int = 1 << 18):
        from tokenizers import models

        letters = list(_byte_letters().values())
        lines = gzip.decompress(vocabulary_file().read_bytes()).decode("utf-8").split("\n")
        merges = [(left, right) for left, right in map(str.split, lines[1 : _MERGES + 1])]
        tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
        # Were a token made by two merges, the order of merging could matter and `tokenizers` differ.
        assert len(set(tokens)) == len(tokens) == START
        vocabulary = {token: number for number, token in enumerate(tokens)}
        self._bpe = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
        self.names, self._capacity = tokens, capacity
        self._special = {"<start_of_text>": (START,), "<end_of_text>": (END,)}
        super().__init__(self._special)

    def __missing__(self, word: str) -> tuple[int, ...]:
        letters = _byte_letters()
        mapped = "".join([letters[byte] for byte in word.encode("utf-8")])
        ids = tuple(token.id for token in self._bpe.tokenize(mapped))
        if len(word) <= _CACHED_LENGTH:
            if len(self) >= self._capacity:
                self.clear()
                self.update(self._special)
            self[word] = ids
        return ids


@cache
def _words() -> Words:
    return Words()


@cache
def _unicode_words():
    import regex  # \p{L} and \p{N}, and the same case folding as open_clip's pattern

    return regex.compile(_WORDS + r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE).findall


def tokenize(texts: Sequence[str]) -> np.ndarray:
    """(N, 77) int32 token ids of N captions: start, words, end, then zeros, as open_clip lays them out.

    A caption that is too long loses its tail and keeps the end token last.
    """
    look_up = _words().__getitem__
    rows = []
    for text in texts:
        text = clean(text)
        words = _ascii_words(text) if text.isascii() else _unicode_words()(text)
        rows.append(list(chain.from_iterable(map(look_up, words)))[: CONTEXT_LENGTH - 2])
    counts = np.fromiter(map(len, rows), np.int64, len(rows))
    out = np.zeros((len(rows), CONTEXT_LENGTH), np.int32)
    column = np.arange(CONTEXT_LENGTH)
    out[(column >= 1) & (column <= counts[:, None])] = list(chain.from_iterable(rows))
    out[:, 0] = START
    out[np.arange(len(rows)), counts + 1] = END
    return out


def decode(tokens: np.ndarray) -> str:
    """The caption of one row of ids, (77,), as the tokenizer saw it: cleaned and in lower case."""
    ids = tokens[1 : int(lengths(tokens)) - 1]
    letters = "".join([_words().names[number] for number in ids.tolist()])
    back = {letter: byte for byte, letter in _byte_letters().items()}
    spaced = letters.replace("</w>", " ").rstrip()
    return bytes([back.get(letter, 32) for letter in spaced]).decode("utf-8", "replace")


def lengths(tokens: np.ndarray) -> np.ndarray:
    """(N,) int64: position of the end token + 1, for (N, 77) ids.

    The first end token counts, as in open_clip's text tower, which pools at the largest id.
    A row of zeros (an unused caption) has length 1.
    """
    return tokens.argmax(-1) + 1
