"""The sample corpus is the seeded draw that write_corpus makes, and importing the demo is light."""

import subprocess
import sys

from flowserve import demo
from flowserve.demo import write_corpus


def test_the_files_are_the_seeded_draw() -> None:
    documents, questions = write_corpus.draw_corpus()
    files = {path.name: path.read_text() for path in demo.corpus_path().iterdir()}
    assert files == {write_corpus.file_name(document.name): f"{document.text}\n" for document in documents}
    assert [(q.question, q.answer) for q in demo.questions()] == [(q.text, q.answer) for q in questions]


def test_there_are_enough_questions_of_every_type() -> None:
    assert len(demo.questions("single")) == len(demo.questions("two-hop")) == write_corpus.QUESTIONS_PER_TYPE


def test_a_linked_document_names_the_entity_that_links_to_it() -> None:
    texts = {path.name: path.read_text() for path in demo.corpus_path().iterdir()}
    for question in demo.questions("two-hop"):
        first, second = question.documents
        assert first.removesuffix(".txt").capitalize() in texts[second]


def test_importing_the_demo_imports_no_torch() -> None:
    code = "import sys, flowserve.demo; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
