"""One file per dataset, each with two functions; here is which.

find(source, recipe) -> Found             lists the samples, in a fixed order, without reading a pixel
reading(source, contract)                 a context that gives a function from Ref to Sample (native groups)
"""

from sgdata.datasets import segmunich_patches

READERS = {
    "segmunich": segmunich_patches,
}
