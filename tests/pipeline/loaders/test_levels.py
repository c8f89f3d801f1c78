"""Images left as levels in uint8: both engines, and `normalise` on the consumer's side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from pipeline.augment import AUGMENTS, Augment, lookup_table, mean_colour, normalise
from pipeline.dali_loader import DALILoader
from pipeline.ffcv_loader import FFCVLoader
from tests.kits.pipeline import decodable_but_for_dali, pairs_file, triplets_file
from tests.pipeline.loaders.test_loader import damaged

PAPER = AUGMENTS["paper"]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ENGINES = {"ffcv": FFCVLoader, "dali": DALILoader}
LAST = torch.channels_last
engines = pytest.mark.parametrize("engine", ENGINES)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    return {"pairs": pairs_file(folder / "p.beton", 20), "triplets": triplets_file(folder / "t.beton", 12)}


def options(engine, **others):
    device = {"device": "cpu"} if engine == "dali" else {}
    return dict(batch_size=8, image_size=24, augment=PAPER, seed=5) | device | others


def one_pass(engine, file, dtype, **others):
    """(images of every view (B, 3, S, S), valid (B,)) of each batch."""
    batches = ENGINES[engine].one_pass(file, dtype=dtype, **options(engine, **others))
    for batch in batches:
        names = ["images"] if hasattr(batch, "images") else ["ref", "left", "right"]
        yield [getattr(batch, name) for name in names], batch.valid


@engines
@floats
@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_levels_become_the_engines_own_floats(files, engine, kind, dtype):
    """To the bit: both engines take the values from the table."""
    table, seen = lookup_table(PAPER, dtype), 0
    both = zip(one_pass(engine, files[kind], torch.uint8), one_pass(engine, files[kind], dtype), strict=True)
    for (levels, valid), (values, _) in both:
        assert valid.all()
        for x, y in zip(levels, values, strict=True):
            assert x.dtype == torch.uint8 and y.dtype == dtype
            assert x.is_contiguous(memory_format=LAST) and normalise(x, table).is_contiguous(
                memory_format=LAST
            )
            assert torch.equal(normalise(x, table), y)
            seen += len(x)
            if dtype == torch.float32:
                mean, std = (torch.tensor(v).double()[:, None, None] for v in (PAPER.mean, PAPER.std))
                assert torch.equal((255 * (y * std + mean)).round(), x.double())
    assert seen == {"pairs": 20, "triplets": 36}[kind]


@engines
def test_a_stream_of_levels_belongs_to_the_consumer(files, engine):
    def stream():
        return ENGINES[engine](files["pairs"], dtype=torch.uint8, **options(engine))

    with stream() as loader:
        kept = [batch.images for _, batch in zip(range(8), loader)]
    with stream() as loader:
        again = [batch.images.clone() for _, batch in zip(range(8), loader)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again))


@engines
@pytest.mark.parametrize("screened", [True, False])
def test_what_does_not_decode_becomes_the_mean_colour(tmp_path, engine, screened, monkeypatch):
    """In the batch that DALI gives up, too: it is the other engine's to the bit."""
    broken = damaged(tmp_path)
    file = pairs_file(tmp_path / "bad.beton", 20, broken=broken, checksums=screened)
    own = Augment(crop="random", flip_p=0.5, mean=(0.0, 0.5, 0.85))
    if not screened:
        decodable_but_for_dali(len(broken[6]), monkeypatch)
    blank = mean_colour(own, torch.uint8)
    assert blank.tolist() == [0, 128, 217]
    ours = one_pass("ffcv", file, torch.uint8, augment=own)
    for number, ((x,), valid) in enumerate(one_pass(engine, file, torch.uint8, augment=own)):
        assert valid.tolist() == [n not in broken for n in range(8 * number, 8 * number + len(x))]
        assert (x[~valid] == blank[:, None, None]).all()
        assert (x[valid].float().flatten(1).std(1) > 3).all()
        (expected,), _ = next(ours)
        assert torch.equal(x, expected) == (engine == "ffcv" or (not screened and number == 0))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
def test_page_locked_memory_holds_the_same(files, dtype, monkeypatch):
    """Without a GPU's driver there is none: everything but the locking."""
    plain = list(one_pass("ffcv", files["pairs"], dtype))
    empty, asked = torch.empty, []

    def unlocked(*shape, pin_memory=False, **others):
        asked.append(pin_memory)
        return empty(*shape, **others)

    monkeypatch.setattr(torch, "empty", unlocked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pinned = list(one_pass("ffcv", files["pairs"], dtype, pin=True))
    assert asked == [True] * len(plain)
    assert all(torch.equal(a, b) for ((a,), _), ((b,), _) in zip(plain, pinned, strict=True))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=LAST),
    "part of a batch": lambda x: x.contiguous(memory_format=LAST)[1:],
    "cut out": lambda x: x[..., 1:, :-1],
    "cut out, channels_last": lambda x: x.contiguous(memory_format=LAST)[..., 1:, :-1],
    "transposed": lambda x: x.transpose(2, 3),
}


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(2, 5), side=st.integers(2, 9), seed=st.integers(0, 2**32),
    layout=st.sampled_from([*LAYOUTS]), dtype=st.sampled_from(FLOATS),
    preset=st.sampled_from([PAPER, Augment(mean=(0, 0.5, 1), std=(1, 0.2, 3))]),
)  # fmt: skip
def test_normalise_is_the_table_in_any_layout(batch, side, seed, layout, dtype, preset):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
    levels, table = LAYOUTS[layout](levels), lookup_table(preset, dtype)
    got = normalise(levels, table)
    assert got.dtype == dtype
    assert torch.equal(got, torch.stack([table[c][levels[:, c].long()] for c in range(3)], 1))
    for form in (torch.contiguous_format, LAST):
        assert got.is_contiguous(memory_format=form) or not levels.is_contiguous(memory_format=form)
    # torchvision rounds level / 255, the difference and the quotient to float32, the table rounds once.
    theirs = F.normalize(F.to_dtype(levels, torch.float32, scale=True), preset.mean, preset.std)
    torch.testing.assert_close(
        normalise(levels, lookup_table(preset, torch.float32)), theirs, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("form", [torch.contiguous_format, LAST], ids=str)
@floats
def test_normalise_compiles_whole(form, dtype):
    levels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8).contiguous(memory_format=form)
    table = lookup_table(PAPER, dtype)
    torch.compiler.reset()
    compiled = torch.compile(normalise, fullgraph=True, dynamic=False, backend="aot_eager")
    got = compiled(levels, table)
    assert torch.equal(got, normalise(levels, table)) and got.is_contiguous(memory_format=form)


def test_the_table_of_levels_is_the_levels():
    table = lookup_table(PAPER, torch.uint8)
    assert table.dtype == torch.uint8 and table.is_contiguous()
    assert torch.equal(table, torch.arange(256, dtype=torch.uint8).expand(3, 256))
    assert not mean_colour(PAPER, torch.bfloat16).any()
