"""Small evaluation sets, models and files for the tests of eval/."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TINY = {  # an open_clip model of 0.1 M parameters
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


CLASSES = ["cat", "dog", "", "fish"]  # one has no name, as CLEVR's has
MODEL = "debug-ViT"
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}  # SigLIP's pixels


def tiny_model(seed: int = 0):
    """(open_clip model with random weights, its tokenizer, its evaluation transform)."""
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    torch.manual_seed(seed)
    model = open_clip.CLIP(**json.loads(json.dumps(TINY)))
    # random transformers see almost the same in everything; larger weights spread the embeddings
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "logit" not in name:
                p.mul_(2.5)
    return (
        model.eval(),
        open_clip.get_tokenizer("ViT-B-32"),
        image_transform_v2(PreprocessCfg(size=32), False),
    )


def encoders(seed: int = 0, model=None):
    import torch

    from eval.encode import from_open_clip

    made, tokenizer, transform = tiny_model(seed)
    return from_open_clip(model or made, tokenizer, transform, torch.device("cpu"))


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (40, 33)) -> list[Image.Image]:
    """Smooth random pictures of several sizes."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        out.append(
            Image.fromarray(small).resize((size[0] + i % 7, size[1] + i % 5), Image.Resampling.BICUBIC)
        )
    return out


def encoded(image: Image.Image, form: str = "png") -> bytes:
    data = io.BytesIO()
    image.save(data, form, **({"quality": 90} if form == "jpeg" else {}))
    return data.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_webdataset(
    folder: Path,
    images: Sequence[bytes],
    targets: Sequence[int | list[str]],
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = ("a picture of a {c}.", "{c}"),
    shards: int = 1,
    suffix: str = "png",
) -> Path:
    """A clip-benchmark folder; targets are class numbers, or lists of captions."""
    retrieval = isinstance(targets[0], list)
    members = []
    for i, (image, target) in enumerate(zip(images, targets)):
        end, text = ("txt", "\n".join(target)) if retrieval else ("cls", str(target))
        members.append([(f"{i:06d}.{suffix}", image), (f"{i:06d}.{end}", text.encode())])
    per = -(-len(members) // shards)
    for shard in range(shards):
        part = members[shard * per : (shard + 1) * per]
        write_tar(folder / "test" / f"{shard}.tar", [m for sample in part for m in sample])
    (folder / "test" / "nshards.txt").write_text(f"{shards}\n")
    if retrieval:
        (folder / "dataset_type.txt").write_text("retrieval\n")
    else:
        (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def class_folders(place: Path, names: Sequence[str], image: bytes, count: int = 1) -> Path:
    """`count` images in each class folder."""
    for name in names:
        (place / name).mkdir(parents=True)
        for i in range(count):
            (place / name / f"{i}.jpg").write_bytes(image)
    return place


def classes_by_folder(evalset) -> dict[str, str]:
    """{class folder: the class name that its images are labelled with}."""
    return {
        member.path.parent.name: evalset.prompts.classes[label]
        for member, label in zip(evalset.images.members, evalset.labels.tolist())
    }


def three_sets(root: Path) -> Path:
    """Two sets over the same images, one with captions, one below five classes."""
    images = [encoded(p) for p in pictures(11)]
    names = [f"thing {i}" for i in range(7)]
    write_webdataset(root / "wds_a", images, [i % 7 for i in range(11)], names)
    write_webdataset(root / "wds_b", images, [i % 2 for i in range(11)], names[:2], shards=2)
    captions = [[f"picture {i} {j}" for j in range(1 + i % 3)] for i in range(11)]
    write_webdataset(root / "wds_c", images, captions)
    return root


def score(root: Path, cache=None, settings=None, ranks=None, made=None):
    """The tiny model's outcome on every set under `root`; cache: a folder or a Cache."""
    from eval import scoring
    from eval.cache import Cache
    from eval.distributed import Ranks
    from eval.sets import sources

    cache = cache if isinstance(cache, Cache) else Cache(cache)
    settings = settings or scoring.Settings(batch_size=4, text_batch_size=8, workers=2)
    sets = sources.discover(root, cache=cache)
    return scoring.score(made or encoders(), sets, None, cache, settings, ranks or Ranks())


# -- the command ------------------------------------------------------------------------------------


def evaluate(what: object, root: Path, out: Path) -> dict:
    """results.json of `eval.run --checkpoint WHAT`."""
    from eval import run
    from eval.results import Evaluation

    arguments = ["--checkpoint", what, "--data", root, "--out", out, "--no-cache"]
    assert run.main([str(a) for a in arguments]) == 0
    return Evaluation.read(out).data


def refused(what: object, root: Path, capsys) -> str:
    """The one line by which `eval.run --checkpoint WHAT` ends."""
    from eval import run

    arguments = ["--checkpoint", what, "--data", root, "--no-cache"]
    assert run.main([str(a) for a in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message


def beside(weights: Path, name: str, content: dict) -> None:
    """A file that tells of the weights."""
    (weights.parent / name).write_text(json.dumps(content))
