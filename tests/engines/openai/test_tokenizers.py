"""Tokenizers of servers: several are loaded at one time when a pool starts."""

import subprocess
import sys
from pathlib import Path

LOAD_MANY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from flowserve.engines.openai.tokenizers import load_tokenizer

with ThreadPoolExecutor(8) as threads:
    found = list(threads.map(load_tokenizer, [sys.argv[1]] * 8))
print(len(found))
"""


def test_threads_that_load_one_at_the_same_time_before_anything_was_imported_all_get_it(tokenizer_folder: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", LOAD_MANY, str(tokenizer_folder)], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "8", done.stderr[-2000:]
