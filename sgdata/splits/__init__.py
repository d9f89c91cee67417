"""Split samples by blocks of ground: pure functions on footprints.

`sgdata.audits.propose_split` and `draw_splits` apply them to whole datasets, which they read and audit.
"""
