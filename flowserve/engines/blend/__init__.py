"""Selective recompute that chooses while layers are computed: `blend.py` has the policies, `walk.py` the loop over layers, `decoder.py`
a transformers model taken apart, `scores.py` and `selection.py` what is measured and what is chosen by it."""
