from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.retrieval import ingest
from flowserve.retrieval.documents import Document
from flowserve.retrieval.embed import HashEmbedder
from flowserve.retrieval.snapshot import Snapshot, empty
from flowserve.retrieval.split import Splitting, split

EMBEDDER = HashEmbedder(16)
SPLITTING = Splitting(3, 1)


def ingested(snapshot: Snapshot, *documents: Document, splitting: Splitting = SPLITTING) -> tuple[Snapshot, list[str]]:
    """The next snapshot, and the texts that were embedded for it."""
    change = ingest.plan(snapshot, documents, splitting, EMBEDDER.count_tokens)
    if not change.digests:
        return snapshot, []
    return ingest.apply(snapshot, change, EMBEDDER.embed(change.texts)), list(change.texts)


def assert_whole(snapshot: Snapshot, documents: dict[str, Document]) -> None:
    """The snapshot is what one would build from these documents at once."""
    expected = sorted(
        (passage for document in documents.values() for passage in split(document, SPLITTING, EMBEDDER.count_tokens)),
        key=lambda passage: passage.id,
    )
    assert list(snapshot.passages) == expected
    assert snapshot.vectors.tolist() == EMBEDDER.embed([passage.text for passage in expected]).tolist()
    assert snapshot.documents.keys() == documents.keys()


START = empty(EMBEDDER.name, EMBEDDER.dimension)


def test_an_unchanged_document_is_not_embedded_again_and_changes_nothing() -> None:
    first, _ = ingested(START, Document("a", "one two three four five"))
    assert ingested(first, Document("a", "one two three four five")) == (first, [])


def test_of_a_changed_document_only_new_passages_are_embedded() -> None:
    first, texts = ingested(START, Document("a", "one two three four five"))
    assert texts == ["one two three", "three four five"]
    second, texts = ingested(first, Document("a", "one two three four six"))
    assert texts == ["three four six"]
    assert_whole(second, {"a": Document("a", "one two three four six")})


def test_changed_metadata_or_splitting_replaces_passages() -> None:
    first, _ = ingested(START, Document("a", "one two three four"))
    second, texts = ingested(first, Document("a", "one two three four", {"lang": "en"}))
    assert texts == [] and {passage.metadata["lang"] for passage in second.passages} == {"en"}
    third, texts = ingested(first, Document("a", "one two three four"), splitting=Splitting(2, 0))
    assert texts == ["one two"]  # the first splitting had "three four" already
    assert [passage.text for passage in third.passages] == ["one two", "three four"]


def test_equal_passages_of_different_documents_are_embedded_once() -> None:
    snapshot, texts = ingested(START, Document("a", "same words"), Document("b", "same words"))
    assert texts == ["same words"]
    assert [passage.id for passage in snapshot.passages] == ["a#0", "b#0"]
    assert_whole(snapshot, {"a": Document("a", "same words"), "b": Document("b", "same words")})


def test_a_document_without_text_is_known_but_has_no_passages() -> None:
    snapshot, _ = ingested(START, Document("a", "  "))
    assert list(snapshot.documents) == ["a"] and snapshot.passages == ()


WORDS = st.lists(st.sampled_from(["one", "two", "three.", "four"]), max_size=9).map(" ".join)
OPERATIONS = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from("abcd"), WORDS, min_size=1, max_size=3),
        st.lists(st.sampled_from("abcde"), min_size=1, max_size=2),
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(OPERATIONS)
def test_any_history_ends_in_the_same_snapshot_as_ingesting_the_outcome_at_once(
    operations: list[dict[str, str] | list[str]],
) -> None:
    snapshot, documents = START, dict[str, Document]()
    for operation in operations:
        if isinstance(operation, dict):
            new = [Document(name, text) for name, text in operation.items()]
            documents.update((document.id, document) for document in new)
            snapshot, _ = ingested(snapshot, *new)
        else:
            documents = {name: document for name, document in documents.items() if name not in operation}
            snapshot = ingest.delete(snapshot, operation)
        assert_whole(snapshot, documents)
