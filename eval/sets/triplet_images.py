"""The images of triplets, read as data preparation and the engines read them.

Zero-shot sets are read as the field's reference reads them (`evalset.FileImages`: transparency dropped, the
EXIF orientation ignored).  A folder of triplets and the .beton made of it must get the same figure, so both
are read as `pipeline/formats/pictures.py` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from eval.sets.evalset import FileImages, Member, Unreadable
from pipeline.formats import pictures


class PreparedImages(FileImages):
    """Files as the build prepares them: upright, transparency on white, 16 bits reduced to 8."""

    reading = "-prepared"

    def _pixels(self, i: int) -> np.ndarray:
        return pictures.read(self.read(i))

    def __getitem__(self, i: int) -> Image.Image:
        try:
            return Image.fromarray(self._pixels(i))
        except (ValueError, OSError) as error:
            raise Unreadable(f"{self.name(i)}: {error}") from None


class BetonImages(PreparedImages):
    """JPEGs of a .beton; one that the engines would refuse is not read."""

    reading = "-stored"

    def __init__(self, members: Sequence[Member], sizes: Sequence[Sequence[int]]):
        """sizes: (height, width) of each, as the file's table has them."""
        super().__init__(members)
        self.sizes = list(sizes)

    def _pixels(self, i: int) -> np.ndarray:
        return pictures.stored(self.read(i), *self.sizes[i])
