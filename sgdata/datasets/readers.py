"""One file per dataset, each with two functions; here is which.

find(source, recipe) -> Found             lists the samples, in a fixed order, without reading a pixel
reading(source, contract)                 a context that gives a function from Ref to Sample (native groups)
"""

from sgdata.datasets import bigearthnet, eurosat, fmow, oscd, pairs, segmunich

READERS = {
    "bigearthnet": bigearthnet,
    "eurosat": eurosat,
    "fmow": fmow,
    "oscd": oscd,
    "pairs": pairs,
    "segmunich": segmunich,
}
