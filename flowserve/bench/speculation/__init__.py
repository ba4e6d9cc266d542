"""`flowserve bench speculation`: retrieval every few tokens, guessed and verified, against the same generation step by step.

`corpus.py` makes the passages, `indexes.py` what they are looked up in, `compare.py` measures, `picture.py` draws one request.
"""
