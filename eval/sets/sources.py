"""Reading evaluation sets from disk, whatever form a user holds them in; nothing is downloaded.

Each sub-folder of a root (or the root itself) may be
  - a clip-benchmark webdataset folder: `test/{nshards.txt, 0.tar, …}` with image and `.cls` or `.txt`;
  - one of torchvision's raw sets, MNIST's files among them (`eval/sets/rawsets.py`);
  - captions: Karpathy's files of COCO and Flickr30k, or `captions.json`;
  - one folder a class, holding images.
`discover` reads all of them.  A folder in none of these forms is named and passed over.  A set that is
damaged, or whose labels its names do not settle, is an error (ValueError naming file and member).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eval.cache import Cache
from eval.sets import catalog, classfolders, imagenet, prompts, rawsets
from eval.sets.catalog import CLASSIFICATION_TASK, RETRIEVAL_TASK
from eval.sets.evalset import (
    BLANK,
    HIDDEN,
    ClassificationSet,
    EvalSet,
    FileImages,
    Member,
    RetrievalSet,
    is_foreign,
    touched,
)
from pipeline.formats import captions as caption_files
from pipeline.formats import nights, tars, utf8

NO_CACHE = Cache(None)

# -- clip-benchmark's webdataset folders ------------------------------------------------------


def _shards(split: Path) -> list[Path]:
    count_file = split / "nshards.txt"
    text = prompts.read_text(count_file).strip()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{count_file}: {text!r} is no number of shards")
    shards = [split / f"{i}.tar" for i in range(int(text))]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard}: missing, {count_file} announces {len(shards)} shard(s)")
    more = sorted(p.name for p in split.glob("*.tar") if p not in shards and p.name[0] != ".")
    if more:
        raise ValueError(f"{split / more[0]}: not among the {len(shards)} that {count_file} announces")
    return shards


def _read_shard(shard: Path, extension: str) -> dict:
    """samples: (offset, size, name, text of its `.cls` or `.txt`) of every image in the tar.

    hidden, more: how many hidden members, and how many further images of a sample, were passed over.
    """
    samples, more = [], 0
    with tars.Tar(shard) as tar:
        if tar.compression:  # images are read by their place in the file
            how = tars.UNPACK[tar.compression]
            raise ValueError(f"{shard}: {tar.compression} inside; unpack it first ({how})")
        items = tar.samples(lambda ending, _: ending == extension)
        for item in items:
            if not (isinstance(item, tars.Sample) and item.pictures and extension in item.parts):
                raise ValueError(f"{shard}, {_what_is_wrong(tar, item, next(items, None), extension)}")
            image, data = item.parts[item.pictures[0]], item.parts[extension].data
            assert data is not None  # asked for above
            target = utf8.text(data, f"{shard}, member {item.key}.{extension}")
            samples.append((image.offset, image.size, image.name, target))
            more += len(item.pictures) - 1
        return {"samples": samples, "hidden": tar.hidden, "more": more}


def _what_is_wrong(tar: tars.Tar, item, following, extension: str) -> str:
    """Why this item of a tar is no whole sample: damage, here or right after it, comes before all else."""
    for fault in (item, following):
        if isinstance(fault, tars.Fault):
            return f"member {fault.name}: not a whole tar file ({fault.detail})"
    if item.key in tar.scattered:
        return f"sample {item.key}: {tars.UNSORTED}"
    missing = f".{extension}" if item.pictures else "an image"
    return f"sample {item.key}: {missing} is missing (it has {sorted(item.parts)})"


def _indexed(shard: Path, extension: str, cache: Cache) -> dict:
    """As `_read_shard`, remembered until the tar or its reader changes."""
    what = f"members 3 {tars.VERSION} {touched(shard.resolve())} {extension}"
    key = hashlib.blake2b(what.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache.remember(key, lambda: _read_shard(shard, extension))


def _label(text: str, name: str) -> int:
    try:
        return int(text.strip())
    except ValueError:
        raise ValueError(f"{name}: its .cls holds {text[:20]!r}, a class number is expected") from None


def _captions(text: str, name: str) -> list[str]:
    """The lines of a `.txt` member; blank ones are no captions, in data preparation neither."""
    if not text.strip():
        raise ValueError(f"{name}: its caption file is empty")
    return [line for line in text.splitlines() if line.strip()]


def _passed_over(shards: Sequence[dict], blank: int) -> tuple[str, ...]:
    """What was left out, for the user to read."""
    hidden, more = (sum(shard[what] for shard in shards) for what in ("hidden", "more"))
    counted = ((hidden, HIDDEN), (more, "further images of a sample not read"), (blank, BLANK))
    return tuple(f"{number} {what}" for number, what in counted if number)


def read_webdataset(
    folder: Path, profile: str | None = None, cache: Cache = NO_CACHE, split: str = "test"
) -> EvalSet:
    """A clip-benchmark folder.  Raises ValueError for a damaged shard, label, caption or class list."""
    kind_file = folder / "dataset_type.txt"
    kind = prompts.read_text(kind_file).strip().lower() if kind_file.is_file() else "classification"
    if kind not in ("retrieval", "classification"):  # multilabel, image_caption_selection (winogavil, …)
        raise ValueError(
            f"{kind_file}: {kind!r}; classification and retrieval are what is evaluated (--datasets chooses)"
        )
    extension = "txt" if kind == "retrieval" else "cls"
    images, targets, indices = [], [], []
    for shard in _shards(folder / split):
        indices.append(_indexed(shard, extension, cache))
        for offset, size, name, target in indices[-1]["samples"]:
            images.append(Member(shard, offset, size, name))
            targets.append(target)
    files = FileImages(images)
    task = RETRIEVAL_TASK if kind == "retrieval" else CLASSIFICATION_TASK
    entry = catalog.entry_for(catalog.name_of(folder), task)
    entry = entry if split == "test" else catalog.training(entry)
    if kind == "retrieval":
        captions = [_captions(t, files.name(i)) for i, t in enumerate(targets)]
        blank = sum(len(t.splitlines()) - len(c) for t, c in zip(targets, captions))
        notes = _passed_over(indices, blank)
        return RetrievalSet(entry, folder, "webdataset", files, captions, notes=notes)
    labels = np.array([_label(t, files.name(i)) for i, t in enumerate(targets)], np.int64)
    loaded = imagenet.named(prompts.load(entry.prompts, folder, None, profile, by_list=True), folder)
    notes = _passed_over(indices, 0)
    if profile is None and not (folder / prompts.CLASSNAMES_FILE).is_file():
        notes += (
            f"no {prompts.CLASSNAMES_FILE}: the labels are taken to be in the order of the field's names",
        )
    return ClassificationSet(entry, folder, "webdataset", files, labels, loaded, notes=notes)


# -- captions -----------------------------------------------------------------------------------


def _from_lines(text: str, path: Path) -> list[tuple[str, list[str]]]:
    """clip-benchmark's `flickr30k_test_karpathy.txt`: a header (or none), then `NAME.jpg,CAPTION` lines."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or (number == 1 and ".jpg," not in line):
            continue
        name, mark, caption = line.strip().partition(".jpg,")
        if not mark:
            raise ValueError(f"{path}, line {number}: NAME.jpg,CAPTION is expected")
        rows.append((f"{name}.jpg", [caption]))
    return rows


def _caption_rows(path: Path) -> list[tuple[str, list[str]]]:
    """(image, captions) of each of the file's rows; several may be one image's."""
    text = utf8.text(path.read_bytes(), str(path))
    if path.suffix != ".json":
        return _from_lines(text, path)
    try:
        data = json.loads(text)
        if isinstance(data, list):  # ours, or BLIP's
            file, texts = ("image", "caption") if data and "image" in data[0] else ("file", "captions")
            return [(row[file], row[texts]) for row in data]
        if "annotations" in data:
            return caption_files.from_coco(data)
        return caption_files.from_karpathy(data, ("test",))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not captions in a known form ({error!r})") from None


def _caption_files(folder: Path) -> list[Path]:
    """What may hold the captions, the one to take first."""
    patterns = ("*_test_karpathy.json", "*_test_karpathy.txt", "*_karpathy_test.json", "flickr30k_test.json",
                "dataset_*.json", "captions.json")  # fmt: skip
    names = sorted(name for name in os.listdir(folder) if name[0] != ".")
    return [folder / name for pattern in patterns for name in fnmatch.filter(names, pattern)]


def _joined_rows(file: Path) -> list[tuple[str, list[str]]]:
    """An image's captions together, also where each has a row of its own."""
    rows: dict[str, list[str]] = {}
    for name, texts in _caption_rows(file):
        if not isinstance(name, str) or not name:
            raise ValueError(f"{file}: {name!r:.60} is no image's name")
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{file}: the captions of {name} are {texts!r:.60}, a list of texts is expected")
        rows.setdefault(name, []).extend(texts)
    return list(rows.items())


def read_captions(folder: Path, file: Path, others: Sequence[Path] = ()) -> RetrievalSet:
    """Images with captions from one annotation file.  Raises ValueError for an image that is missing."""
    rows = _joined_rows(file)
    if not rows:
        raise ValueError(f"{file}: no image with captions in it (of Karpathy's splits, test is read)")
    places = [folder, *(d for d in sorted(folder.iterdir()) if d.is_dir())]
    members, captions, blank = [], [], 0
    for name, texts in rows:
        # lexists: a link to nowhere is an unreadable image, and counted as such
        paths = [p / name for p in places if os.path.lexists(p / name)]
        if not paths:
            raise ValueError(f"{file}: {name} is in no folder under {folder}")
        if len({*map(os.path.realpath, paths)}) > 1:
            raise ValueError(f"{file}: {name} is both {paths[0]} and {paths[1]}; keep one of them there")
        if any("\ud800" <= c <= "\udfff" for t in texts for c in t):
            raise ValueError(f"{file}: a caption of {name} has half a character in it ({ascii(texts)[:60]})")
        if not any(t.strip() for t in texts):
            raise ValueError(f"{file}: {name} has no caption")
        members.append(Member.whole(paths[0], name))
        captions.append([t for t in texts if t.strip()])
        blank += len(texts) - len(captions[-1])
    entry = catalog.entry_for(catalog.name_of(folder), RETRIEVAL_TASK)
    notes = _passed_over((), blank)
    if others:
        notes += (f"captions from {file.name}, not {', '.join(f.name for f in others)}",)
    return RetrievalSet(entry, folder, "captions", FileImages(members), captions, notes=notes)


# -- finding them -----------------------------------------------------------------------------------


def read_folder(folder: Path, profile: str | None = None, cache: Cache = NO_CACHE) -> EvalSet | None:
    """The set in this very folder, or None when it is in none of the known forms."""
    if (folder / "test" / "nshards.txt").is_file():
        return read_webdataset(folder, profile, cache)
    if (evalset := rawsets.read(folder, profile)) is not None:
        return evalset
    if files := _caption_files(folder):
        return read_captions(folder, files[0], files[1:])
    return None if _holds_triplets(folder) else classfolders.read(folder, profile)


def read_training(
    evalset: ClassificationSet, profile: str | None = None, cache: Cache = NO_CACHE
) -> ClassificationSet | None:
    """The training split that lies beside a set, in the same form; None where there is none.

    Labels count its own classes, which may be more than the set's.  Raises ValueError where it is damaged.
    """
    folder = evalset.path
    if evalset.source == "webdataset":
        if not (folder / "train" / "nshards.txt").is_file():
            return None
        training = read_webdataset(folder, profile, cache, "train")
        assert training.prompts is not None  # as its test split
        return training
    if evalset.source in classfolders.SOURCES:
        return classfolders.read_training(folder, profile)
    return rawsets.read(folder, profile, training=True)


def _holds_triplets(folder: Path) -> bool:
    """Whether a table of NIGHTS' layout lies here: its folders (ref, distort) are no classes."""
    tables = [folder / name for name in nights.TABLES if (folder / name).is_file()]
    return any(b"ref_path" in table.read_bytes().partition(b"\n")[0] for table in tables)


def discover(
    root: Path,
    wanted: set[str] | None = None,
    profile: str | None = None,
    cache: Cache = NO_CACHE,
    say: Callable[[str], None] = lambda line: None,
) -> list[EvalSet]:
    """Every set under `root`, in the catalog's order, then by name; folders in no known form go to `say`.

    wanted: keys to read (see `catalog.select`); the others are not opened.  Raises ValueError when the root
    holds none, or a set is damaged, or two folders hold the same set.
    """
    if not root.is_dir():
        raise ValueError(f"--data {root}: no such folder")
    root = catalog.snapshot(Path(os.path.abspath(root)))  # a set is known by its name, which . has not
    by_key: dict[str, EvalSet] = {}
    passed: list[str] = []
    folders = [root] + sorted(d for d in root.iterdir() if d.is_dir() and not is_foreign(d.name))
    if not _caption_files(root) and any(map(_caption_files, folders[1:])):
        del folders[0]  # its folders hold images, but as sets with captions, not as classes
    for folder in map(catalog.snapshot, folders):
        known = catalog.find(catalog.name_of(folder))
        if known is not None and not catalog.is_wanted(known, wanted):
            continue  # another set's name: it need not be opened
        try:
            evalset = read_folder(folder, profile, cache)
        except ValueError:
            if catalog.is_wanted(known or classfolders.entry_of(folder), wanted):
                raise
            evalset = None  # damaged, and not what is asked for
        if evalset is None:
            passed += [catalog.name_of(folder)] if folder != root else []
            continue
        key = evalset.entry.key
        if not catalog.is_wanted(evalset.entry, wanted):
            continue
        if key in by_key:
            raise ValueError(f"{folder} and {by_key[key].path} both hold {key}; keep one under the root")
        by_key[key] = evalset
        if folder == root:
            break  # the root itself is the set: its sub-folders are its parts
    if not by_key:
        raise ValueError(
            f"--data {root}: no evaluation set in it"
            + (f" among {', '.join(k + catalog.near(k, root) for k in sorted(wanted))}" if wanted else "")
            + (f" (looked into {', '.join(passed)})" if passed else "")
            + "; expected clip-benchmark folders (wds_NAME/test/0.tar), torchvision's raw sets, one folder"
            " a class, or Karpathy's caption files"
        )
    if passed:
        say(f"no evaluation set that is known here, passed over: {', '.join(passed)}")
    order = {e.key: i for i, e in enumerate(catalog.ENTRIES)}
    return sorted(by_key.values(), key=lambda s: (order.get(s.entry.key, len(order)), s.entry.key))
