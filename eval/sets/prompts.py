"""Class names and prompt templates of a zero-shot set.

Files beside the data win (clip-benchmark's `classnames.txt` and
`zeroshot_classification_templates.txt`); else the field's own, from `prompts.json` and
open_clip.  Two published profiles differ for SVHN: `clip_benchmark` spells the digits,
`datacomp` uses MNIST's names and prompt; every result names the profile it used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.formats import utf8

PROFILES = ("datacomp", "clip_benchmark")
BESIDE = "beside the data"
NO_TEMPLATES = "no published profile: ImageNet's 80 templates"
_AS_IMAGENET = ("imagenet1k", "imagenetv2", "imagenet_sketch", "objectnet")  # share its templates
CLASSNAMES_FILE, TEMPLATES_FILE = "classnames.txt", "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class Prompts:
    """K class names, T templates with `{c}`; `profile` says whose they are."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    profile: str

    def texts(self) -> list[str]:
        """K × T prompts, class by class."""
        # str.replace would also fill a "{c}" inside a class name; format does not.
        return [t.format(c=c) for c in self.classes for t in self.templates]


@cache
def packaged() -> dict:
    """prompts.json: `classnames`, `templates`, `imagenet_wnids` (1000), `imagenet_subsets` (indices)."""
    return json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))


def known_classnames(name: str, profile: str = PROFILES[0]) -> tuple[str, ...] | None:
    """The field's class names of a set (catalog `prompts` name), None where the data themselves hold them."""
    from open_clip import IMAGENET_CLASSNAMES

    data = packaged()
    if name == "svhn" and profile == "datacomp":
        name = "mnist"
    if name in _AS_IMAGENET[:3]:
        return tuple(IMAGENET_CLASSNAMES)
    if name in data["imagenet_subsets"]:
        return tuple(IMAGENET_CLASSNAMES[i] for i in data["imagenet_subsets"][name])
    names = data["classnames"].get(name)
    return None if names is None else tuple(names)


def known_templates(name: str, profile: str = PROFILES[0]) -> tuple[str, ...]:
    """The field's templates; ImageNet's 80 for a set that has none, as clip-benchmark does."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    if name == "svhn" and profile == "datacomp":
        name = "mnist"
    templates = packaged()["templates"].get(name)
    return tuple(templates) if templates else tuple(t("{c}") for t in OPENAI_IMAGENET_TEMPLATES)


def read_text(path: Path) -> str:
    """A text file of the user's, without a byte-order mark; ValueError if it is not UTF-8."""
    return utf8.text(path.read_bytes(), str(path))


def read_lines(path: Path) -> tuple[str, ...] | None:
    """A file's lines, stripped; blank ones count (CLEVR has an empty class name); None if absent."""
    return tuple(line.strip() for line in read_text(path).splitlines()) if path.is_file() else None


# Lists in other forms, which would pass as names: the model would be asked for "0: tench" or "'tench',".
_NO_NAMES = (
    (r"\d+ *[\t:.,)] *[^\d\s].*", "numbers before the names"),
    (r"""[\[({].*|["'].*["'],?|.*,""", "a list out of a program"),
)
_NO_TEMPLATE = r"""lambda .*|f?(["']).*\1,?"""


def read_classnames(folder: Path) -> tuple[str, ...] | None:
    """The names beside the data, one a line; None if there are none.  ValueError for another form of list."""
    names = read_lines(folder / CLASSNAMES_FILE)
    filled = [n for n in names or () if n]
    most = filled[:-1] or filled  # the last one has no comma
    what = next((w for form, w in _NO_NAMES if most and all(re.fullmatch(form, n) for n in most)), None)
    if what or _counted(filled):
        raise ValueError(
            f"{folder / CLASSNAMES_FILE}: {what or 'numbers before the names'} ({filled[0]!r}, …); a name "
            "alone on each line is expected"
        )
    return names


def _counted(names: Sequence[str]) -> bool:
    """Whether they are numbered from 0 or 1 with a blank between; 1 apple, 2 apples are names."""
    numbers, _, rest = zip(*(n.partition(" ") for n in names)) if names else ((), (), ())
    from_first = [[str(i + first) for i in range(len(names))] for first in (0, 1)]
    return len(names) > 2 and list(numbers) in from_first and all(rest) and len({*rest}) == len(rest)


def checked_templates(templates: Sequence[str], where: object) -> tuple[str, ...]:
    """Templates whose only field is `{c}`; open_clip's `{}` is taken too.  ValueError names the bad line."""
    if not templates:
        raise ValueError(f"{where}: no template; one a line is expected, with {{c}} for the class name")
    out = []
    for number, template in enumerate(templates, 1):
        template = template.replace("{}", "{c}")
        try:
            filled = template.format(c="\0")
        except (KeyError, IndexError, ValueError):
            filled = ""
        if "\0" not in filled or re.fullmatch(_NO_TEMPLATE, template):
            raise ValueError(f"{where}, line {number}: {template!r} is no template with {{c}} in it")
        out.append(template)
    return tuple(out)


def load(
    name: str, folder: Path, own_classes: Sequence[str] | None, profile: str | None, by_list: bool = False
) -> Prompts:
    """Prompts of the set `name` (catalog `prompts` name) whose data lie in `folder`.

    profile None: the files beside the data where they are, else the field's (datacomp's).
    own_classes: what the data set itself calls its classes.
    by_list: labels are places in the list of names beside the data; else they follow the field's order, or
    own_classes', and such a list in another order is a ValueError.
    """
    listed = read_classnames(folder)
    beside_templates = read_lines(folder / TEMPLATES_FILE) if profile is None else None
    fallback = profile or PROFILES[0]
    field = known_classnames(name, fallback) or own_classes
    if profile is not None or not by_list:
        check_order(listed, field, folder)
    classes = listed or field if profile is None else field or listed
    if not classes:
        raise ValueError(f"{folder}: no class names; {CLASSNAMES_FILE} with one name a line is expected")
    if beside_templates is None:
        templates = known_templates(name, fallback)
    else:
        templates = checked_templates(beside_templates, folder / TEMPLATES_FILE)
    published = name in packaged()["templates"] or name in packaged()["imagenet_subsets"]
    label = fallback if published or name in _AS_IMAGENET else NO_TEMPLATES
    prompts = Prompts(tuple(classes), templates, label)
    if profile is not None or (listed is None and beside_templates is None):
        return prompts
    profile = _recognised(name, prompts)
    if beside_templates is None and label == NO_TEMPLATES:
        profile = f"class names {profile}, {label}"
    return Prompts(prompts.classes, templates, profile)


def check_order(listed: Sequence[str] | None, known: Sequence[str] | None, folder: Path) -> None:
    """ValueError when the names beside the data are the field's in another order: so are the labels.

    Also where some are spelt otherwise, and most of the names that both lists have stand elsewhere.
    """
    listed, known = listed or (), known or ()
    ours, theirs = ([name.lower() for name in names] for names in (listed, known))
    if len(ours) != len(theirs):
        return
    same = sum(a == b for a, b in zip(ours, theirs))
    if (ours != theirs and sorted(ours) == sorted(theirs)) or len({*ours} & {*theirs}) > 2 * same:
        i = next(i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b and a in theirs)
        raise ValueError(
            f"{folder / CLASSNAMES_FILE}: the field's class names in another order (line {i + 1}: "
            f"{listed[i]!r}, in the field {known[i]!r}), so labels and names would not meet"
        )


def _recognised(name: str, prompts: Prompts) -> str:
    """`beside the data`, and which published profile the files equal, if one."""
    for profile in PROFILES:
        same = known_classnames(name, profile) == prompts.classes
        if same and known_templates(name, profile) == prompts.templates:
            return f"{BESIDE} (equal to {profile})"
    return BESIDE
