"""What a weights file was trained as, as far as the file or one beside it tells.

Weights fit a model by their shapes alone.  They also load where the model's activation or the scale of its
pixels is another: the figures are then wrong and nothing fails.  So our checkpoints record both in the file,
and for other weights the files that people keep beside them are read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.augment import CLIP_MEAN, CLIP_STD
from train.architectures import has_quick_gelu

OURS = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, in transformers' files


@dataclass(frozen=True)
class Origin:
    """None: unknown.  preprocess: some of open_clip's mean, std, interpolation, resize_mode.

    whole: false where the weights are the image tower's alone.
    """

    quick_gelu: bool | None = None
    preprocess: dict | None = None
    says: str = ""  # the file or files that say so
    whole: bool = True

    def over(self, other: Origin) -> Origin:
        """This, and from `other` what is unknown here."""
        files = [o.says for o in (self, other) if o.says]
        quick = other.quick_gelu if self.quick_gelu is None else self.quick_gelu
        return Origin(quick, self.preprocess or other.preprocess, " and ".join(dict.fromkeys(files)))


def metadata(recipe: dict) -> dict[str, str]:
    """For the header of a checkpoint's weights: what `of_weights` reads back."""
    model = recipe.get("model", "")
    quick = has_quick_gelu(model)
    activation = {} if quick is None else {"quick_gelu": json.dumps(quick)}
    return {"format": "pt", "model": model, "preprocess": json.dumps(OURS), **activation}


def _in_file(file: Path) -> Origin:
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
    except (OSError, SafetensorError):  # loading it will say what is wrong with it
        return Origin()
    try:
        values = {name: json.loads(header[name]) for name in ("quick_gelu", "preprocess") if name in header}
    except ValueError:  # somebody else's metadata
        return Origin()
    return Origin(**values, says=file.name) if values else Origin()


def _recipe(data: dict, says: str) -> Origin:
    quick = has_quick_gelu(str(data.get("model")))
    return Origin() if quick is None else Origin(quick, OURS, says)


def _open_clip(data: dict, says: str) -> Origin:
    config = data.get("model_cfg")
    quick = bool(config.get("quick_gelu", False)) if isinstance(config, dict) else None
    return Origin(quick, data.get("preprocess_cfg") or None, says)


def _preprocessor(data: dict, says: str) -> Origin:
    """transformers' image processor: a size of one number is the short side, or both sides without a crop."""
    size = data.get("size")
    both = isinstance(size, dict) and {"height", "width"} <= size.keys()
    crop = data.get("do_center_crop", False)
    preprocess = {
        "mean": data.get("image_mean"),
        "std": data.get("image_std"),
        "interpolation": _RESAMPLE.get(data.get("resample", 0)),
        "resize_mode": "squash" if both and not crop else "shortest",
    }
    return Origin(None, {name: value for name, value in preprocess.items() if value is not None}, says)


def _config(data: dict, says: str) -> Origin:
    """transformers' model."""
    parts = [part for part in (data, data.get("vision_config")) if isinstance(part, dict)]
    acts = {part.get("hidden_act") for part in parts} - {None}
    return Origin("quick_gelu" in acts, None, says) if acts else Origin()


_BESIDE = {
    "recipe.json": _recipe,
    "open_clip_config.json": _open_clip,
    "preprocessor_config.json": _preprocessor,
    "config.json": _config,
}


def _params(file: Path) -> Origin:
    """open_clip's trainer writes RUN/params.txt, lines `name: value`, beside RUN/checkpoints.

    Weights fine-tuned from OpenAI's had OpenAI's activation in some of its versions, whatever the model's
    name, and not in others: then the activation is unknown.
    """
    if not file.is_file():
        return Origin()
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    quick = has_quick_gelu(values.get("model", ""))
    if values.get("force_quick_gelu") == "True":
        quick = True
    elif values.get("pretrained", "").lower() == "openai" and not quick:
        quick = None
    words = {n: values.get(f"image_{n}", "None") for n in ("mean", "std", "interpolation", "resize_mode")}
    preprocess: dict = {n: word.strip("'") for n, word in words.items() if word != "None"}
    for name in {"mean", "std"} & preprocess.keys():
        word = preprocess[name]
        try:
            preprocess[name] = [float(x) for x in word.strip("[]()").split(",")]
        except ValueError:
            raise ValueError(f"{file}: image_{name} is {word!r}, three numbers are expected") from None
    return Origin(quick, preprocess or None, str(file)) if preprocess or quick is not None else Origin()


def of_weights(weights: Path) -> Origin:
    """Of a .safetensors file's own header, then of the files beside it.

    Raises ValueError for a file beside it that is damaged.
    """
    origin = _in_file(weights) if weights.suffix == ".safetensors" else Origin()
    for name, read in _BESIDE.items():
        file = weights.parent / name
        if origin.quick_gelu is not None and origin.preprocess is not None or not file.is_file():
            continue
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(
                f"{file}: not JSON ({error}), so it does not tell what {weights.name} is"
            ) from None
        if isinstance(data, dict):
            origin = origin.over(read(data, str(file)))
    if origin.quick_gelu is None or origin.preprocess is None:
        folders = dict.fromkeys((weights.parent, weights.absolute().parent.parent))
        origin = origin.over(next((o for f in folders if (o := _params(f / "params.txt")).says), Origin()))
    _check_pixels(origin)
    return origin


def _check_pixels(origin: Origin) -> None:
    """ValueError for a mean or a deviation that is not three numbers, or is of pixels from 0 to 255."""
    for name in ("mean", "std"):
        value = (origin.preprocess or {}).get(name, CLIP_MEAN)
        if not (isinstance(value, (list, tuple)) and len(value) == 3 and all(_is_number(v) for v in value)):
            raise ValueError(f"{origin.says}: {name} of the pixels is {value!r}, three numbers are expected")
        if not all(0 <= v <= 1 and (v or name == "mean") for v in value):
            raise ValueError(
                f"{origin.says}: {name} of the pixels is {value!r}; of pixels from 0 to 1 is expected"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
