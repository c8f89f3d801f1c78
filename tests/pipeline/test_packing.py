"""Packed captions: nothing lost, full rows on real captions, the tower's own features."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing import pack
from pipeline.text import tokenize


def captions(lengths, seed=0):
    """(B, 77) int32 with start and end tokens; ids inside may be zero."""
    tokens = np.zeros((len(lengths), 77), np.int32)
    rng = np.random.default_rng(seed)
    for row, length in zip(tokens, lengths):
        row[:length] = rng.integers(0, 49406, length)
        row[0], row[length - 1] = 49406, 49407
    return torch.from_numpy(tokens)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 77), min_size=1, max_size=60),
    row=st.integers(77, 300),
    rows=st.integers(0, 40),
)
def test_every_caption_is_there_once_and_whole(lengths, row, rows):
    tokens = captions(lengths)
    packed = pack(tokens, row, rows)
    assert packed.tokens.shape == packed.segment.shape == packed.position.shape
    assert packed.tokens.shape[1] == row
    flat, segment = packed.tokens.flatten(), packed.segment.flatten()
    for i, length in enumerate(lengths):
        (places,) = torch.nonzero(segment == i, as_tuple=True)
        assert torch.equal(places, torch.arange(places[0], places[0] + length)), "a caption lies in one piece"
        assert places[0] // row == places[-1] // row, "and in one row"
        assert torch.equal(flat[places], tokens[i, :length])
        assert torch.equal(packed.position.flatten()[places], torch.arange(length).int())
        assert packed.pool[i] == places[-1]
    filler = segment == len(lengths)
    assert int(filler.sum()) == filler.numel() - sum(lengths)
    assert not flat[filler].any() and not packed.position.flatten()[filler].any()


def real_captions(shared_data):
    with open(shared_data / "photos" / "captions.csv") as f:
        tags = [line["caption"] for line in csv.DictReader(f)]
    text = json.dumps(json.loads((shared_data / "coco36" / "captions.json").read_text()))
    sentences = [part for part in text.split('"') if part.count(" ") > 4]
    return {"tags": tokenize(tags), "sentences": tokenize(sentences)}


@pytest.mark.parametrize("row", [96, 128, 256])
def test_rows_are_full_on_real_captions(shared_data, row):
    for name, tokens in real_captions(shared_data).items():
        assert len(tokens) > 100
        rng = np.random.default_rng(0)
        for batch in (256, 4096):
            for _ in range(5):
                drawn = torch.from_numpy(tokens[rng.integers(0, len(tokens), batch)])
                need = len(pack(drawn, row).tokens)
                best = -(-int((drawn != 0).sum()) // row)
                assert need <= best * 1.05 + 1, (name, batch)


def test_a_batch_that_needs_more_rows_gets_a_step_more():
    tokens = captions([77] * 20)
    assert pack(tokens, 128).tokens.shape == (20, 128)
    assert pack(tokens, 128, 32).tokens.shape == (32, 128)
    assert pack(tokens, 128, 17).tokens.shape == (20, 128)
    assert pack(captions([77] * 33), 128, 32).tokens.shape == (34, 128)


def test_the_towers_features_are_those_of_padded_captions():
    import open_clip

    from kernels.towers import encode_packed_text

    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    model = open_clip.model.CLIP(**config).double().eval()
    tokens = captions(np.random.default_rng(1).integers(2, 78, 30).tolist())
    packed = pack(tokens, 128)
    with torch.no_grad():
        expected = model.encode_text(tokens.long())
        got = encode_packed_text(model, *packed)
    assert (got - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    "tokens, row, message",
    [
        (torch.zeros(2, 77, dtype=torch.int32), 128, "without tokens"),
        (captions([50]), 40, "caption of 50 tokens does not fit a row of 40"),
        (torch.zeros(0, 77, dtype=torch.int32), 128, "without tokens"),
    ],
)
def test_mistakes_are_named(tokens, row, message):
    with pytest.raises(ValueError, match=message):
        pack(tokens, row)
