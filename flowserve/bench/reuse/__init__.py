"""The reuse of chunks, measured: `scores.py` grades an answer, `quality.py` holds a policy against full prefill."""
