"""Caption files that are one JSON document: COCO's own, and Karpathy's splits."""

from __future__ import annotations

import os
from collections.abc import Container


def from_coco(data: dict) -> list[tuple[str, list[str]]]:
    """(file name, captions) of every image of `captions_*.json`, by image id.

    Raises KeyError or TypeError where `data` is something else, ValueError where the ids do not determine
    which caption belongs to which image.
    """
    names = {image["id"]: image["file_name"] for image in data["images"]}
    if len(names) < len(data["images"]):
        counts = f"{len(data['images'])} images, but {len(names)} ids"
        raise ValueError(f"{counts} (files joined?), so it cannot be told which caption is whose")
    captions: dict[int, list[str]] = {i: [] for i in sorted(names)}
    for annotation in data["annotations"]:
        if (image := annotation["image_id"]) not in captions:
            raise ValueError(f"a caption of image {image}, which is not among its images")
        captions[image].append(annotation["caption"])
    return [(names[i], texts) for i, texts in captions.items()]


def from_karpathy(data: dict, splits: Container[str]) -> list[tuple[str, list[str]]]:
    """(file name, captions) of `dataset_coco.json`, `dataset_flickr30k.json`: the rows of these splits."""
    return [
        (os.path.join(i.get("filepath", ""), i["filename"]), [s["raw"] for s in i["sentences"]])
        for i in data["images"]
        if i["split"] in splits
    ]
