"""A cross-encoder of a few random weights, read from a folder."""

from pathlib import Path

import numpy as np
import pytest

from flowserve.retrieval.documents import Passage
from flowserve.retrieval.protocols import Query
from flowserve.retrieval.ranking import NOTHING
from flowserve.retrieval.rerank import CrossEncoderReranker, reranked

QUERY = Query("bread", None)


@pytest.mark.torch
@pytest.mark.slow
def test_a_cross_encoder_reads_query_and_passage_together(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nbread\noven\ncrust")
    tokenizer = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        initializer_range=1.0,
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    tokenizer.save_pretrained(tmp_path / "model")
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    passages = [Passage(text, text, text, 0, len(text)) for text in ("oven", "crust", "bread oven")]
    reranker, vectors = CrossEncoderReranker(tmp_path / "model"), np.zeros((3, 4), np.float32)
    scores = reranker.score(QUERY, passages, vectors)
    assert scores.shape == (3,) and len(set(scores.tolist())) == 3
    ranking = (np.zeros(3, np.float32), np.arange(3, dtype=np.int64))
    top, rows = reranked(reranker, QUERY, ranking, passages, vectors, 2)
    assert rows.tolist() == np.argsort(-scores)[:2].tolist() and top[0] > top[1]


def test_nothing_is_not_reranked(tmp_path: Path) -> None:
    assert reranked(CrossEncoderReranker(tmp_path), QUERY, NOTHING, [], np.zeros((0, 4), np.float32), 2) is NOTHING
