"""The benchmark on a tiny model: its counts by hand, its command line, its one line of JSON."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch

from kernels.bench import cases, gpu, sides
from kernels.bench import command as bench
from kernels.bench.attention import segment_bounds
from kernels.bench.ranks import EqualRanks, open_clip_rank_loss
from kernels.contrastive import contrastive_loss
from kernels.flops import flop_counter
from tests.kits.kernels import unit_pairs

TINY = "debug-ViT"


@pytest.fixture(autouse=True, scope="module")
def model_configs():
    open_clip.add_model_config(Path(__file__).parents[2] / "train" / "model_configs")


def test_synthetic_captions():
    lengths = cases.synthetic_lengths(5120)
    assert abs(sum(lengths) / len(lengths) - 16) < 0.2 and 3 <= min(lengths) <= max(lengths) <= 77
    tokens = cases.synthetic_captions([2, 77, 16])
    assert (tokens.argmax(-1) + 1).tolist() == [2, 77, 16] and tokens[0, 2:].sum() == 0


@pytest.mark.parametrize(
    "loss", [partial(contrastive_loss, group=EqualRanks(3)), partial(open_clip_rank_loss, world_size=3)]
)
def test_a_ranks_loss_is_that_of_all_its_equals(loss):
    """Of the batch of all ranks' pairs, on one process: the loss, and gradients as DDP wants them."""
    inputs = [*unit_pairs(5, 7), torch.tensor(9.0, dtype=torch.float64)]
    ours, whole = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    result = loss(*ours)
    expected = contrastive_loss(whole[0].repeat(3, 1), whole[1].repeat(3, 1), whole[2])
    torch.testing.assert_close(result, expected)
    for x, y in zip(torch.autograd.grad(result, ours), torch.autograd.grad(expected, whole)):
        torch.testing.assert_close(x, y)


def test_memory_by_hand():
    x = torch.zeros(1000)
    with cases.PeakMemory() as memory:
        y = x + 1  # 4,000 bytes
        z = y * 2  # 8,000
        del y
        assert memory.now == 4000
        z.view(10, 100).add_(1)  # views and in-place: nothing new
        assert (memory.now, memory.peak) == (4000, 8000)
    del z


def test_flops_count_attention_by_hand():
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    for backward, products in ((False, 2), (True, 2 + 5)):  # scores, sums; backward the scores again, 4 more
        with flop_counter() as counter:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            if backward:
                out.sum().backward()
        assert counter.get_total_flops() == products * 2 * 2 * 3 * 5 * 5 * 8


@pytest.mark.slow
def test_one_line_of_json(capsys: pytest.CaptureFixture, tmp_path):
    out = tmp_path / "bench.json"
    captions = tmp_path / "captions.txt"
    captions.write_text("a photo of a cat\n\ntwo dogs\na very long walk in the rain\n")
    options = ["--model", TINY, "--batch", "3", "--rounds", "2", "--threads", "1"]
    options += ["--captions", str(captions)]
    assert bench.main([*options, "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert result["levers"].keys() == cases.CASES.keys()
    assert result["flops_per_pair"] * 3 < result["levers"]["open_clip"]["gflop_per_pair"] * 3e9
    flops = {name: row["gflop_per_pair"] for name, row in result["levers"].items()}
    assert flops["open_clip again"] == flops["open_clip"] and flops["trim"] < flops["towers"]
    assert result["levers"]["all+pointwise"]["kept_bytes"] < result["levers"]["all"]["kept_bytes"]
    assert result["peak_bytes"] > 0 and result["step_vs_open_clip"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "9"], "3 captions, but a batch of 9"),
        (["--captions", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_errors(options: list[str], words: str, capsys: pytest.CaptureFixture, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a\nb\nc\n")
    assert bench.main(["--model", TINY, "--captions", str(captions), *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--rounds", "0"], "--rounds must be at least 1"), (["--compile", "--gpu"], "choose one")],
)
def test_wrong_options(options: list[str], words: str, capsys: pytest.CaptureFixture):
    assert bench.main(options) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile, which takes a minute for all sides, leaves functions as they are."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu.PARTS)
def test_each_side_computes_the_same(name: str, uncompiled):
    """Of what runs on any machine; a side that does not is a row that says so. (Errors: bfloat16 rounds.)"""
    result = gpu.PARTS[name]({"bytes_per_s": 1e9, "flop_per_s": 1e9}, toy=True)
    tables = {"": result} if name == "triplet" else result
    rows = {f"{title} {side}": row for title, table in tables.items() for side, row in table.items()}
    ran = {side: row for side, row in rows.items() if "failed" not in row}
    assert len(ran) >= {"triplet": 2, "infonce": 18, "attention": 4}[name]
    for side, row in ran.items():
        assert max(row["errors"]) < (2e-5 if "float32" in side else 2e-2), side
        assert row["forward_ms"] > 0 and row["share_of_limit"] > 0


def test_what_fails_is_a_row_and_the_rest_goes_on(monkeypatch, capsys, tmp_path):
    """Sides, parts and the limits; the JSON is written all the same."""

    def fails(*_):
        raise RuntimeError("out of memory")

    x = torch.ones(3, requires_grad=True)
    exact = sides.differentiate(lambda: x.double().sum(), [x])
    rows = sides.beside("sums", {"bad": fails, "good": x.sum}, [x], exact, 24, limit=None)
    assert rows["bad"] == {"failed": "RuntimeError: out of memory"} and rows["good"]["errors"] == [0, 0]
    assert "sums, bad: failed: RuntimeError: out of memory" in capsys.readouterr().out

    monkeypatch.setattr(gpu, "bench_limits", fails)
    result = gpu.run_parts({"a": fails, "b": lambda limits: {"limit": limits.get("flop_per_s")}})
    assert result == {"limits": rows["bad"], "a": rows["bad"], "b": {"limit": None}}
    monkeypatch.setattr(gpu, "bench_gpu", lambda: gpu.run_parts({"a": fails}))
    assert bench.main(["--gpu", "--out", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["a"] == rows["bad"]


def test_bounds_of_packed_captions():
    segment = torch.tensor([[1, 1, 2], [2, 0, 0]])  # equal numbers in two rows are two captions
    assert segment_bounds(segment).tolist() == [0, 2, 3, 4, 6]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu(capsys: pytest.CaptureFixture):
    assert bench.main(["--gpu"]) == 2
    assert capsys.readouterr().err.strip() == "error: --gpu: torch sees no CUDA device here"


@pytest.mark.parametrize("own", [None, "TRITON_CACHE_DIR", "TRITON_HOME"])
def test_kernels_are_kept_where_one_may_write(own, monkeypatch, tmp_path):
    """Without a home in a folder for temporary files; never in another place than the user has named."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv(own, "/mine")
    assert bench.main(["--captions", str(tmp_path / "none"), "--model", TINY]) == 2
    kept = os.environ.get("TRITON_CACHE_DIR")
    if own:
        assert kept == ("/mine" if own == "TRITON_CACHE_DIR" else None)
    else:
        assert kept.startswith(str(tmp_path)) and os.access(os.path.dirname(kept), os.W_OK)
