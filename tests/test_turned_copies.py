from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sgdata.rasters.dihedral import d4_hash

IMAGES = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    elements=st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(IMAGES, st.integers(0, 3), st.booleans())
def test_turned_and_mirrored_copies_share_a_hash(image: np.ndarray, quarter: int, mirrored: bool) -> None:
    copy = np.rot90(image[:, ::-1] if mirrored else image, quarter, axes=(1, 2))
    assert d4_hash(copy) == d4_hash(image)
    assert d4_hash(np.asfortranarray(image)) == d4_hash(image)


def test_other_pictures_do_not() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 9, (2, 8, 8), dtype=np.uint16)
    shifted, bands = np.roll(image, 1, axis=2), image[::-1]
    wide = np.arange(8, dtype=np.uint16).reshape(1, 2, 4)
    others = [image + 1, image.astype(np.float32), shifted, bands, image[:, :7], wide, wide.reshape(1, 1, 8)]
    assert len({d4_hash(each) for each in (image, *others)}) == 8
