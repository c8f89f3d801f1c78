"""The evaluation suite as data: the paper's 29 zero-shot sets, two retrieval sets, and those of `demo.json`.

A set's key is the one clip-benchmark and DataComp use; counts are DataComp's
(mlfoundations/datacomp `tasklist.yml`).  `eval/sets/sources.py` reads the sets, `eval/sets/prompts.py`
has their class names and prompts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

IMAGENET, OOD, VTAB = "ImageNet", "ImageNet OOD", "VTAB"
FINE, MISC, RETRIEVAL, OTHER = "Fine-grained & Specialty", "Misc. / Domain & Small", "Retrieval", "Other"
FAMILIES = (IMAGENET, OOD, VTAB, FINE, MISC)  # the paper's five, in the order of its Table 1
CLASSIFICATION_TASK, RETRIEVAL_TASK = "zeroshot_classification", "zeroshot_retrieval"


@dataclass(frozen=True)
class Entry:
    """One set.  `samples` and `classes` None: not fixed, nothing to check."""

    name: str  # the row of the paper's table
    key: str
    family: str
    samples: int | None = None
    classes: int | None = None
    main_metric: str = "acc1"  # what DataComp reports for it
    near_chance: bool = False  # scores at or near chance: its slopes and small differences mean little
    task: str = CLASSIFICATION_TASK
    headline: dict[str, str] = field(default_factory=dict, hash=False)  # name in summaries → metric
    caution: str = ""  # what a reader of a comparison on this set must know

    @property
    def prompts(self) -> str:
        """The set's name in `prompts.json`: the key without VTAB's prefix."""
        return self.key.removeprefix("vtab/")

    @property
    def folder(self) -> str:
        """clip-benchmark's folder name, without its `wds_`."""
        return self.key.replace("/", "-")


_MPC = "mean_per_class_recall"
CLASSIFICATION = (
    Entry("ImageNet-1k", "imagenet1k", IMAGENET, 50000, 1000),
    Entry("ImageNet-A", "imagenet-a", OOD, 7500, 200),
    Entry("ImageNet-O", "imagenet-o", OOD, 2000, 200),
    Entry("ImageNet-R", "imagenet-r", OOD, 30000, 200),
    Entry("ImageNet-Sketch", "imagenet_sketch", OOD, 50889, 1000),
    Entry("ImageNet-V2", "imagenetv2", OOD, 10000, 1000),
    Entry("ObjectNet", "objectnet", OOD, 18574, 113),
    Entry("CIFAR-100", "vtab/cifar100", VTAB, 10000, 100),
    Entry("Caltech-101", "vtab/caltech101", VTAB, 6085, 102, _MPC),
    Entry("CLEVR-Dist.", "vtab/clevr_closest_object_distance", VTAB, 15000, 6, near_chance=True),
    Entry("CLEVR-Count", "vtab/clevr_count_all", VTAB, 15000, 8, near_chance=True),
    Entry("KITTI-CVD", "vtab/kitti_closest_vehicle_distance", VTAB, 711, 4, near_chance=True),
    Entry("DTD", "vtab/dtd", VTAB, 1880, 47),
    Entry("EuroSAT", "vtab/eurosat", VTAB, 5400, 10),
    Entry("Flowers-102", "vtab/flowers", VTAB, 6149, 102, _MPC),
    Entry("Oxford-IIIT Pet", "vtab/pets", VTAB, 3669, 37, _MPC),
    Entry("RESISC45", "vtab/resisc45", VTAB, 6300, 45),
    Entry("SVHN", "vtab/svhn", VTAB, 26032, 10, near_chance=True),
    Entry("PCAM", "vtab/pcam", VTAB, 32768, 2, near_chance=True),
    Entry("Stanford Cars", "cars", FINE, 8041, 196),
    Entry("Food-101", "food101", FINE, 25250, 101),
    Entry("FGVC-Aircraft", "fgvc_aircraft", FINE, 3333, 100, _MPC),
    Entry("PASCAL VOC 07", "voc2007", FINE, 14976, 20),
    Entry("CIFAR-10", "cifar10", MISC, 10000, 10),
    Entry("Country211", "country211", MISC, 21100, 211),
    Entry("GTSRB", "gtsrb", MISC, 12630, 43),
    Entry("MNIST", "mnist", MISC, 10000, 10),
    Entry("Rendered-SST2", "renderedsst2", MISC, 1821, 2, near_chance=True),
    Entry("STL-10", "stl10", MISC, 8000, 10),
)
_T2I = "image_retrieval_recall@1"
CAPTIONS = (
    Entry("Flickr30k (1K test)", "flickr30k", RETRIEVAL, 1000, None, _T2I, task=RETRIEVAL_TASK),
    Entry("MS-COCO 2014 (5K test)", "mscoco_captions", RETRIEVAL, 5000, None, _T2I, task=RETRIEVAL_TASK),
)
PAPER = CLASSIFICATION + CAPTIONS  # the 31 sets of its tables
_DEMO = json.loads((Path(__file__).parent / "demo.json").read_text(encoding="utf-8"))
DEMO = _DEMO["family"]
DEMONSTRATION = tuple(
    Entry(**described, family=DEMO, caution=_DEMO["caution"]) for described in _DEMO["sets"]
)
OTHERS = (Entry("Fashion-MNIST", "fashion-mnist", OTHER, 10000, 10),)
ENTRIES = PAPER + DEMONSTRATION + OTHERS
_BY_KEY = {e.key: e for e in ENTRIES}
# DataComp's names (its tasklist.yml) where they are not the paper's: its aggregate looks sets up by name,
# and open_clip's tables have them as columns.
_DATACOMP_NAMES = {
    "imagenet1k": "ImageNet 1k", "imagenet_sketch": "ImageNet Sketch", "imagenetv2": "ImageNet v2",
    "vtab/clevr_closest_object_distance": "CLEVR Distance", "vtab/clevr_count_all": "CLEVR Counts",
    "vtab/kitti_closest_vehicle_distance": "KITTI Vehicle Distance", "vtab/dtd": "Describable Textures",
    "vtab/flowers": "Oxford Flowers-102", "vtab/pcam": "PatchCamelyon", "fgvc_aircraft": "FGVC Aircraft",
    "voc2007": "Pascal VOC 2007", "renderedsst2": "Rendered SST2", "flickr30k": "Flickr",
    "mscoco_captions": "MSCOCO",
}  # fmt: skip
_DATACOMP_KEYS = {
    "flickr30k": "retrieval/flickr_1k_test_image_text_retrieval",
    "mscoco_captions": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
}
# Further names under which people's folders hold a set; matched in lower case with "/" and "_" as "-".
_ALIASES = {
    "imagenet1k": (
        "imagenet", "imagenet-val", "imagenet-1k-val", "imagenet1k-val", "imagenet-2012", "imagenet2012",
        "ilsvrc", "ilsvrc2012", "ilsvrc2012-val", "ilsvrc2012-img-val",
        "imagenet-object-localization-challenge",
    ),
    "imagenetv2": (
        "imagenetv2-matched-frequency", "imagenetv2-matched-frequency-format-val",
        "imagenet-matched-frequency-format-val",
    ),
    "imagenet-a": ("imageneta",), "imagenet-o": ("imageneto",), "imagenet-r": ("imagenetr",),
    "imagenet_sketch": ("sketch",), "vtab/flowers": ("flowers102",), "stl10": ("stl10-binary",),
    "fgvc_aircraft": ("fgvc-aircraft-2013b",), "voc2007": ("vocdevkit",), "mscoco_captions": ("coco",),
    "flickr30k": ("retrieval-flickr30k",), "fashion-mnist": ("fashionmnist",),
}  # fmt: skip


def about_triplets(source: str) -> str:
    """What a reader must know of the triplets built from a data set of this name; mostly nothing."""
    return _DEMO["triplets"]["about"] if source == _DEMO["triplets"]["source"] else ""


def datacomp(entry: Entry) -> tuple[str, str]:
    """(key, name) of a set in DataComp's results."""
    return _DATACOMP_KEYS.get(entry.key, entry.key), _DATACOMP_NAMES.get(entry.key, entry.name)


def _plain(name: str) -> str:
    return name.lower().replace("/", "-").replace("_", "-").replace(" ", "-")


_BY_NAME = (
    {_plain(e.name): e for e in ENTRIES}
    | {_plain(n): _BY_KEY[k] for k, n in _DATACOMP_NAMES.items()}
    | {n: _BY_KEY[k] for k, names in _ALIASES.items() for n in names}
    | {_plain(e.prompts): e for e in ENTRIES}
    | {_plain(e.key): e for e in ENTRIES}
)


def _bare(name: str) -> str:
    """The name without what clip-benchmark puts around it: `wds_vtab-dtd_test`, `wds/vtab/dtd`."""
    return name.removeprefix("wds_").removeprefix("wds/").removesuffix("_test")


def snapshot(folder: Path) -> Path:
    """The folder with the files of a set in Hugging Face's cache (`datasets--ORG--NAME`); else itself."""
    head = folder / "refs" / "main"
    return folder / "snapshots" / head.read_text().strip() if head.is_file() else folder


def name_of(folder: Path) -> str:
    """The name of a set's folder; of a snapshot in Hugging Face's cache, its repository's."""
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.rpartition("--")[2]
    return folder.name


def find(name: str) -> Entry | None:
    """The catalog's entry for a key or a folder name, or None."""
    return _BY_NAME.get(_plain(_bare(name)))


def _key(name: str) -> str:
    """The key of the set that a user's or a folder's name means."""
    known = find(name)
    return known.key if known else _bare(name)


def entry_for(name: str, task: str = CLASSIFICATION_TASK) -> Entry:
    """The catalog's entry, or a new one of family Other for a set that the catalog does not know."""
    known = find(name)
    if known is not None and known.task == task:
        return known
    key = _bare(name)
    metric = "acc1" if task == CLASSIFICATION_TASK else _T2I
    return Entry(key, key, OTHER, main_metric=metric, task=task)


def training(entry: Entry) -> Entry:
    """The entry for a set's training split: the catalog counts test images only."""
    return replace(entry, samples=None)


def check_counts(entry: Entry, samples: int, classes: int | None, where: object) -> None:
    """ValueError with both numbers when a set on disk is not the set of that name."""
    if entry.samples is not None and samples != entry.samples:
        raise ValueError(
            f"{where}: {entry.key} has {entry.samples} test images, {samples} are here; a figure from "
            "another count is not comparable (give the folder another name to evaluate it as its own set)"
        )
    if entry.classes is not None and classes is not None and classes != entry.classes:
        raise ValueError(f"{where}: {entry.key} has {entry.classes} classes, {classes} are listed here")


def select(datasets: Sequence[str] = (), families: Sequence[str] = ()) -> set[str] | None:
    """Keys asked for by name or family; None when nothing was asked for: then every set counts.

    `OTHER` among them stands for every set that the catalog does not know.
    Raises ValueError for an unknown family.
    """
    if not datasets and not families:
        return None
    known = {_plain(f): f for f in (*FAMILIES, RETRIEVAL, DEMO, OTHER)}
    for family in families:
        if _plain(family) not in known:
            raise ValueError(f"--families {family}: unknown; the families are {', '.join(known.values())}")
    wanted = {known[_plain(f)] for f in families}
    keys = {e.key for e in ENTRIES if e.family in wanted}
    return keys | (wanted & {OTHER}) | {_key(d) for d in datasets}


def is_wanted(entry: Entry, wanted: set[str] | None) -> bool:
    """Whether `select`'s keys ask for this set."""
    return wanted is None or entry.key in wanted or (entry.family == OTHER and OTHER in wanted)


def near(name: str, root: Path) -> str:
    """In words, the catalog's sets and the folders under `root` with names like this one; or nothing."""
    here = {_bare(d.name) for d in root.iterdir() if d.is_dir()}
    similar = difflib.get_close_matches(_key(name), sorted({*_BY_KEY, *here} - {_key(name)}), 3)
    return f" (near it: {', '.join(similar)})" if similar else ""


def check_found(
    datasets: Sequence[str], families: Sequence[str], entries: Sequence[Entry], root: Path
) -> None:
    """ValueError for the first name or family asked for that none of the `entries` under `root` has."""
    here = ", ".join(sorted(e.key for e in entries))
    for name in datasets:
        if all(e.key != _key(name) for e in entries):
            raise ValueError(f"--datasets {name}: no such set under {root}{near(name, root)}; found: {here}")
    for family in families:
        if all(_plain(e.family) != _plain(family) for e in entries):
            raise ValueError(f"--families {family}: no set of it under {root}; found: {here}")
