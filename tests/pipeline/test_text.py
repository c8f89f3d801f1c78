"""The fast tokenizer against open_clip's, and the cleaning short cuts against ftfy itself."""

from __future__ import annotations

import csv
import json

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.text import CONTEXT_LENGTH, END, START, Words, clean, lengths, tokenize

open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer")
reference = open_clip_tokenizer.SimpleTokenizer()

# Pieces that meet in captions and that some step treats specially.
PIECES = [
    "it's", "WE'RE", "'S", "'ſ", "İ", "ß", "ﬁ", "Ａ", "ａ１", "“q”", "‘q’", "&amp;", "&amp;amp;",
    "&lt;b&gt;", "&eacute;", "<b>", "<start_of_text>", "<END_OF_TEXT>", "<|startoftext|>", "sÃ³",
    "voilÃ ", "â€™", "ã\x83\x84", "\x1b[31m", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f",
    "\x85", "\xa0", "\u2028", "\u3000", "\ufeff", "\u200b", "\u0301", "e\u0301", "가각", "日本語",
    "🏳️‍🌈", "👩🏽‍🚀", "٣", "Ⅷ", "½", "…", "—", "_", "__", "'", "''s", "aaaa", "\ud800", "x" * 80,
]  # fmt: skip
text = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=8).map("".join),
    st.text(st.characters(max_codepoint=0x2FF)),
    st.text(st.characters(max_codepoint=0x7F)),
)


def slow(caption: str) -> str:
    return open_clip_tokenizer._clean_lower(caption)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(text)
def test_equals_open_clip_on_any_string(caption):
    assert clean(caption) == slow(caption)
    assert tokenize([caption])[0].tolist() == reference(caption)[0].tolist()


@pytest.mark.slow
def test_every_code_point_alone_and_in_a_word():
    for number in range(0x3000):
        for caption in (chr(number), f"caf{chr(number)} b"):
            assert clean(caption) == slow(caption), hex(number)


@pytest.mark.slow
def test_assigned_code_points_beyond():
    captions = [f"a{chr(number)}b" for number in range(0x3000, 0x110000, 211)]
    assert [clean(c) for c in captions] == [slow(c) for c in captions]
    assert (tokenize(captions) == reference(captions).numpy()).all()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(text, max_size=9))
def test_a_batch_equals_its_captions_one_by_one(captions):
    tokens = tokenize(captions)
    assert tokens.shape == (len(captions), CONTEXT_LENGTH) and tokens.dtype == np.int32
    for row, caption in zip(tokens, captions):
        assert (row == tokenize([caption])[0]).all()


def test_layout_and_truncation():
    tokens = tokenize(["", "a cat", "word " * 200])
    assert tokens[0].tolist() == [START, END] + [0] * 75
    assert lengths(tokens).tolist() == [2, 4, 77]
    assert tokens[2, 0] == START and tokens[2, -1] == END and (tokens[2, 1:-1] == tokens[2, 1]).all()
    assert lengths(tokenize(["a <end_of_text> b"])).tolist() == [3]  # open_clip pools at the first one


def test_the_cache_of_words_may_overflow():
    words = Words(capacity=10)
    names = [f"w{chr(97 + n)}{chr(100 + n % 5)}" for n in range(60)]
    first = [words[name] for name in names]
    assert len(words) <= 10 and [words[name] for name in names] == first
    assert words["<end_of_text>"] == (END,)


@pytest.mark.slow
def test_captions_of_photographs(shared_data):
    with open(shared_data / "photos" / "captions.csv", encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    coco = json.loads((shared_data / "coco36" / "captions.json").read_text())
    captions += _strings(coco)
    captions += _strings(json.loads((shared_data / "emoji" / "meta.json").read_text()))
    assert len(captions) > 1000
    assert (tokenize(captions) == reference(captions).numpy()).all()


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [s for item in value for s in _strings(item)] if isinstance(value, list) else []


def test_ftfy_still_has_the_steps_that_the_short_cut_knows():
    """A new ftfy with another step must not go unnoticed: the short cut names every one of these."""
    assert set(ftfy.TextFixerConfig._fields) == {
        "unescape_html", "remove_terminal_escapes", "fix_encoding", "restore_byte_a0",
        "replace_lossy_sequences", "decode_inconsistent_utf8", "fix_c1_controls", "fix_latin_ligatures",
        "fix_character_width", "uncurl_quotes", "fix_line_breaks", "fix_surrogates", "remove_control_chars",
        "normalization", "max_decode_length", "explain",
    }  # fmt: skip
