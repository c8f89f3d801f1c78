"""The forms of open_clip that can be measured beside us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["open_clip", "open_clip_compiled", "open_clip_main", "open_clip_main_compiled"]


@dataclass(frozen=True)
class Form:
    """A way to run open_clip.

    main: its main branch, with the custom-text model, whose captions are cut to the batch's longest.
    compiled: what torch.compile is given.
    """

    main: bool = False
    compiled: Literal["nothing", "model", "step"] = "nothing"


FORMS: dict[Name, Form] = {
    "open_clip": Form(),
    "open_clip_compiled": Form(compiled="model"),
    "open_clip_main": Form(main=True),
    "open_clip_main_compiled": Form(main=True, compiled="step"),
}
# What is measured unasked. On a CPU compiling gains the main branch little: which form is faster is measured.
USUAL: dict[str, tuple[Name, ...]] = {
    "cuda": ("open_clip", "open_clip_compiled", "open_clip_main_compiled"),
    "cpu": ("open_clip", "open_clip_main", "open_clip_main_compiled"),
}
