import os
from io import BytesIO
from pathlib import Path

import pytest

from flowserve.errors import RetrievalError
from flowserve.retrieval.load import MAX_FILE_BYTES, load


def pdf(text: str, password: str | None = None) -> bytes:
    """A PDF of one page that says `text`."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    page[NameObject("/Resources")] = DictionaryObject(
        {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
    )
    content = DecodedStreamObject()
    content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
    page[NameObject("/Contents")] = writer._add_object(content)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def reasons(folder: Path, max_bytes: int = MAX_FILE_BYTES) -> dict[str, str]:
    return {skipped.path: skipped.reason for skipped in load(folder, max_bytes=max_bytes).skipped}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    return folder


def test_a_folder_gives_its_documents_in_the_order_of_their_relative_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.rst", "Z.text"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    loaded = load(tmp_path)
    assert [(d.id, d.text, d.metadata["type"]) for d in loaded.documents] == [
        ("Z.text", "text of Z.text", "text"),
        ("a/b/c.rst", "text of a/b/c.rst", "text"),
        ("a/z.md", "text of a/z.md", "markdown"),
        ("b.txt", "text of b.txt", "text"),
    ]
    assert loaded.skipped == ()


def test_a_single_file_is_called_by_its_name(folder: Path) -> None:
    assert [document.id for document in load(folder / "good.txt").documents] == ["good.txt"]


def test_html_gives_title_and_readable_text(folder: Path) -> None:
    (folder / "page.html").write_text(
        "<html><head><title>A\n title</title><style>p {}</style></head><body><!-- hidden --><h1>Head</h1>"
        "<p>One <b>bold</b>\n  word.</p><p>Two<br>lines</p><script>evil()</script><pre>a\n  b</pre>"
        "<table><tr><td>x</td><td>y</td></tr></table></body></html>"
    )
    document = load(folder).documents[1]
    assert document.metadata == {"type": "html", "title": "A title"}
    assert document.text == "Head\n\nOne bold word.\n\nTwo\nlines\n\na\n  b\n\nx y"


def test_html_in_its_declared_encoding_and_with_absurd_nesting_is_read(folder: Path) -> None:
    (folder / "cyrillic.html").write_bytes('<meta charset="windows-1251"><p>привет</p>'.encode("cp1251"))
    (folder / "deep.html").write_text("<div>" * 3000 + "bottom" + "</div>" * 3000)
    texts = {document.id: document.text for document in load(folder).documents}
    assert texts["cyrillic.html"] == "привет" and texts["deep.html"] == "bottom"


def test_a_pdf_gives_its_text(folder: Path) -> None:
    (folder / "paper.pdf").write_bytes(pdf("Hello from a page"))
    document = load(folder).documents[1]
    assert document.text.strip() == "Hello from a page"
    assert document.metadata == {"type": "pdf", "pages": "1"}


@pytest.mark.parametrize(
    "data, text",
    [
        ("naïve – text".encode(), "naïve – text"),
        (b"\xef\xbb\xbf" + "naïve".encode(), "naïve"),
        ("naïve".encode("utf-16"), "naïve"),
        ("naïve \N{EURO SIGN}".encode("cp1252"), "naïve €"),
        (b"one\r\ntwo\rthree", "one\ntwo\nthree"),
        (b"ok \x81", "ok \N{REPLACEMENT CHARACTER}"),
    ],
    ids=["utf-8", "bom", "utf-16", "windows", "line ends", "undefined byte"],
)
def test_text_of_any_common_encoding_is_read(folder: Path, data: bytes, text: str) -> None:
    (folder / "a.txt").write_bytes(data)
    assert load(folder).documents[0].text == text


def test_files_that_cannot_be_used_are_reported_and_the_others_read(folder: Path) -> None:
    (folder / "binary.txt").write_bytes(b"a\0b")
    (folder / "data.xyz").write_text("?")
    (folder / "empty.md").write_text(" \n")
    (folder / "torn.pdf").write_bytes(pdf("x")[:100])
    (folder / "locked.pdf").write_bytes(pdf("secret", password="open sesame"))
    (folder / "scan.pdf").write_bytes(pdf(""))
    (folder / "big.txt").write_text("x" * 5000)
    os.mkfifo(folder / "pipe.txt")
    assert [document.id for document in load(folder, max_bytes=4000).documents] == ["good.txt"]
    found = reasons(folder, max_bytes=4000)
    assert list(found) == sorted(found)
    assert found["binary.txt"] == "binary data"
    assert found["data.xyz"] == "unknown kind of file '.xyz'"
    assert found["empty.md"] == found["scan.pdf"] == "there is no text in it"
    assert found["torn.pdf"].startswith("not readable as PDF")
    assert found["locked.pdf"] == "a PDF with a password"
    assert found["big.txt"] == "larger than 4,000 bytes"
    assert found["pipe.txt"] == "not a regular file"


def test_links_are_followed_to_files_inside_the_folder_only(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "sub").mkdir()
    (folder / "out.txt").symlink_to("../secret.txt")
    (folder / "in.txt").symlink_to("good.txt")
    (folder / "dangling.txt").symlink_to("nowhere.txt")
    (folder / "circle.txt").symlink_to("circle.txt")
    (folder / "loop").symlink_to(".")
    (folder / "up").symlink_to("..")
    loaded = load(folder)
    assert [document.id for document in loaded.documents] == ["good.txt", "in.txt"]
    assert reasons(folder) == {
        "circle.txt": "a link that leads nowhere",
        "dangling.txt": "a link that leads nowhere",
        "loop": "a link to a folder; linked folders are not entered",
        "out.txt": "a link that leads out of the folder",
        "up": "a link that leads out of the folder",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_reported(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0)
    assert reasons(folder) == {"closed": "cannot be read: Permission denied"}


def test_hidden_files_are_left_out(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "x.txt").write_text("x")
    (folder / ".hidden.txt").write_text("x")
    loaded = load(folder)
    assert [document.id for document in loaded.documents] == ["good.txt"] and not loaded.skipped


def test_a_name_that_is_not_utf8_is_reported(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("x")
    assert list(reasons(folder).values()) == ["the file's name is not valid UTF-8"]


def test_nothing_there_and_nothing_usable_are_errors_that_say_why(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="there is nothing at"):
        load(tmp_path / "missing")
    with pytest.raises(RetrievalError, match="it holds no files"):
        load(tmp_path)
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(RetrievalError, match=r"a\.xyz: unknown kind of file '\.xyz'"):
        load(tmp_path)


def test_progress_counts_every_file(folder: Path) -> None:
    (folder / "b.xyz").write_text("?")
    seen: list[tuple[str, int, int]] = []
    load(folder, progress=lambda *event: seen.append(event))
    assert seen == [("load", 1, 2), ("load", 2, 2)]
