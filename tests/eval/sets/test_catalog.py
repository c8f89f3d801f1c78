"""The catalog: the paper's sets, their names and counts."""

from __future__ import annotations

import dataclasses

import pytest

from eval.sets import catalog, sources
from tests.kits.eval import write_webdataset


def test_catalog_is_the_papers():
    assert len(catalog.CLASSIFICATION) == 29 and len(catalog.CAPTIONS) == 2
    sizes = {f: sum(e.family == f for e in catalog.CLASSIFICATION) for f in catalog.FAMILIES}
    assert list(sizes.values()) == [1, 6, 12, 4, 6]
    assert sum(e.samples for e in catalog.CLASSIFICATION) == 413_108


@pytest.mark.parametrize(
    "name, key",
    [
        ("wds_vtab-clevr_count_all", "vtab/clevr_count_all"),
        ("wds_vtab-dtd_test", "vtab/dtd"),
        ("wds_imagenet_sketch", "imagenet_sketch"),
        ("ImageNetV2-matched-frequency", "imagenetv2"),
        ("wds_fer2013", None),
    ],
)
def test_catalog_finds_folders(name, key):
    found = catalog.find(name)
    assert (found.key if found else None) == key


def test_wrong_count_names_both_numbers(tmp_path, images):
    folder = write_webdataset(tmp_path / "wds_vtab-dtd", images, [0] * 12, ["a"])
    with pytest.raises(ValueError, match="vtab/dtd has 1880 test images, 12 are here"):
        sources.read_webdataset(folder)


def test_class_list_of_another_length_names_both_numbers(tmp_path, images, monkeypatch):
    folder = write_webdataset(tmp_path / "wds_vtab-dtd", images, [0] * 12, ["a"] * 46)
    short = dataclasses.replace(catalog.find("vtab/dtd"), samples=12)
    monkeypatch.setattr(catalog, "entry_for", lambda *_: short)
    with pytest.raises(ValueError, match="vtab/dtd has 47 classes, 46 are listed here"):
        sources.read_webdataset(folder)


def test_datacomps_names():
    """Those its aggregate_scores.py looks for, of the sets that the paper has."""
    wanted = {
        "ImageNet 1k", "ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R",
        "ObjectNet", "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures",
        "EuroSAT", "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon",
        "RESISC45", "SVHN", "Flickr", "MSCOCO",
    }  # fmt: skip
    known = dict(map(catalog.datacomp, catalog.CLASSIFICATION + catalog.CAPTIONS))
    assert wanted <= set(known.values())
    assert known["retrieval/flickr_1k_test_image_text_retrieval"] == "Flickr"
    assert known["retrieval/mscoco_2014_5k_test_image_text_retrieval"] == "MSCOCO"


def test_select_families():
    assert catalog.select(families=["retrieval"]) == {"flickr30k", "mscoco_captions"}
    assert catalog.select(datasets=["wds_vtab-dtd", "own"]) == {"vtab/dtd", "own"}
    assert catalog.select() is None
    with pytest.raises(ValueError, match="the families are ImageNet"):
        catalog.select(families=["VTAB+"])
