"""The benchmark on a tiny model: its counts by hand, its command line, its one line of JSON."""

from __future__ import annotations

import json
import os

import open_clip
import pytest
import torch

from kernels.bench import command as bench
from kernels.bench.gpu import pack
from kernels.flops import flop_counter

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path) -> str:
    config = tmp_path / "kernels-bench-tiny.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    return config.stem


def test_synthetic_captions():
    lengths = bench.synthetic_lengths(5120)
    assert abs(sum(lengths) / len(lengths) - 16) < 0.2 and 3 <= min(lengths) <= max(lengths) <= 77
    tokens = bench.synthetic_captions([2, 77, 16])
    assert (tokens.argmax(-1) + 1).tolist() == [2, 77, 16] and tokens[0, 2:].sum() == 0


def test_pack_keeps_every_token():
    tokens = bench.synthetic_captions(bench.synthetic_lengths(200))
    packed, segment, position, pool = pack(tokens, 128)
    for caption, row in enumerate(tokens):
        mine = segment == caption
        length = int(row.argmax()) + 1
        assert packed[mine].tolist() == row[:length].tolist()
        assert position[mine].tolist() == list(range(length))
        assert packed.flatten()[pool[caption]] == bench.END
    assert (segment < 200).float().mean() > 0.9  # rows are nearly full


def test_memory_by_hand():
    x = torch.zeros(1000)
    with bench.PeakMemory() as memory:
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


def test_one_line_of_json(tiny: str, capsys: pytest.CaptureFixture, tmp_path):
    out = tmp_path / "bench.json"
    captions = tmp_path / "captions.txt"
    captions.write_text("a photo of a cat\n\ntwo dogs\na very long walk in the rain\n")
    options = ["--model", tiny, "--batch", "3", "--rounds", "2", "--threads", "1"]
    options += ["--captions", str(captions)]
    assert bench.main([*options, "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert result["levers"].keys() == bench.CASES.keys()
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
def test_errors(tiny: str, options: list[str], words: str, capsys: pytest.CaptureFixture, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a\nb\nc\n")
    assert bench.main(["--model", tiny, "--captions", str(captions), *options]) == 2
    assert words in capsys.readouterr().err


def test_bad_numbers_and_missing_gpu(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "0"])
    assert "--rounds must be at least 1" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert bench.main(["--gpu"]) == 2
        assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("own", [None, "TRITON_CACHE_DIR", "TRITON_HOME"])
def test_kernels_are_kept_where_one_may_write(own, monkeypatch, tmp_path):
    """Without a home, for this run alone; never in another place than the user has named."""
    monkeypatch.setenv("HOME", "/nonexistent")
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(own, str(tmp_path))
    before = os.environ.get("TRITON_CACHE_DIR")
    with bench.place_for_kernels():
        folder = os.environ.get("TRITON_CACHE_DIR")
        assert folder == before if own else os.path.isdir(folder)
    assert os.environ.get("TRITON_CACHE_DIR") == before
    assert own or not os.path.exists(folder)
