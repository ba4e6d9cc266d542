"""Tiers, one per file: `valkey.py` and `s3.py` are remote, `breaker.py` stands before them; `remote.py` opens one by URL."""
