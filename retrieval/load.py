"""Documents from files and folders: text, Markdown, HTML, PDF.

A file that cannot be used is reported with its reason and does not stop the others. Links are followed only to regular
files inside the folder that was asked for. Hidden files and folders (`.git`) are left out without a word.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from flowserve.errors import RetrievalError
from flowserve.ids import Bytes
from flowserve.retrieval.documents import Document
from flowserve.retrieval.html import html_text
from flowserve.retrieval.protocols import Progress

MAX_FILE_BYTES: Bytes = 32 << 20
MAX_TEXT_CHARS = 32 << 20
"""Of one document after extraction: a small PDF can unfold to gigabytes."""

BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that gave no document."""

    path: str
    """As the document's id would have been."""
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a path held. Both in the order of their ids."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


class _Unusable(Exception):
    """Why a file gives no document."""


def load(path: Path, *, max_bytes: Bytes = MAX_FILE_BYTES, progress: Progress | None = None) -> Loaded:
    """All documents at `path`, a file or a folder. A document's id is its path relative to the folder, with `/`.

    Raises RetrievalError when there is nothing at `path` or nothing usable in it.
    """
    path = Path(path)
    if not path.exists():
        raise RetrievalError(f"there is nothing at '{path}'; give a file or a folder")
    documents: list[Document] = []
    skipped: list[Skipped] = []
    found = sorted(_walk(path, skipped), key=lambda item: item[0]) if path.is_dir() else [(path.name, path)]
    for number, (name, file) in enumerate(found, 1):
        try:
            documents.append(_document(name, file, path if path.is_dir() else None, max_bytes))
        except _Unusable as reason:
            skipped.append(Skipped(name, str(reason)))
        if progress is not None:
            progress("load", number, len(found))
    if not documents:
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in skipped[:5]) or "it holds no files"
        more = f" (and {len(skipped) - 5} more)" if len(skipped) > 5 else ""
        raise RetrievalError(
            f"no document in '{path}': {reasons}{more}. Files are read by suffix: {', '.join(sorted(READERS))}"
        )
    return Loaded(tuple(documents), tuple(sorted(skipped, key=lambda item: item.path)))


def _walk(root: Path, skipped: list[Skipped]) -> Iterator[tuple[str, Path]]:
    """Files and links below `root`; linked folders come as themselves, so they are reported and not entered."""

    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        skipped.append(Skipped(name, f"cannot be read: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=False):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in links]
        for name in files + links:
            if not name.startswith("."):
                yield (here / name).relative_to(root).as_posix(), here / name


def _document(name: str, file: Path, root: Path | None, max_bytes: Bytes) -> Document:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _Unusable("the file's name is not valid UTF-8") from None
    suffix = file.suffix.lower()
    if root is not None and file.is_symlink():
        file = _inside(file, root)
    reader = READERS.get(suffix)
    if reader is None:
        raise _Unusable(f"unknown kind of file '{suffix}'")
    text, metadata = reader(_read(file, max_bytes))
    if len(text) > MAX_TEXT_CHARS:
        raise _Unusable(f"its text is longer than {MAX_TEXT_CHARS:,} characters")
    if not text.strip():
        raise _Unusable("there is no text in it")
    return Document(name, text, metadata)


def _inside(link: Path, root: Path) -> Path:
    """The regular file inside `root` that `link` means."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        raise _Unusable("a link that leads nowhere") from None
    if not target.is_relative_to(root.resolve()):
        raise _Unusable("a link that leads out of the folder")
    if target.is_dir():
        raise _Unusable("a link to a folder; linked folders are not entered")
    return target


def _read(file: Path, max_bytes: Bytes) -> bytes:
    """At most `max_bytes` of a regular file. Opening without blocking: a pipe would wait for its writer for ever."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _Unusable("not a regular file")
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise _Unusable(f"larger than {max_bytes:,} bytes")
    return data


def decode(data: bytes) -> str:
    """Text of unknown encoding: by its byte order mark, else UTF-8, else Windows-1252, where every byte means something.

    Raises _Unusable for binary data.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _lines(data.decode(encoding, errors="replace"))
    if b"\0" in data:
        raise _Unusable("binary data")
    try:
        return _lines(data.decode("utf-8"))
    except UnicodeDecodeError:
        return _lines(data.decode("cp1252", errors="replace"))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(data: bytes) -> tuple[str, dict[str, str]]:
    return decode(data), {"type": "text"}


def _markdown(data: bytes) -> tuple[str, dict[str, str]]:
    return decode(data), {"type": "markdown"}


def _html(data: bytes) -> tuple[str, dict[str, str]]:
    try:
        title, text = html_text(data)
    except ImportError:
        raise _Unusable("HTML needs beautifulsoup4: pip install 'flowserve[ingest]'") from None
    except Exception as error:  # noqa: BLE001 - a parser may trip over hostile input in any way
        raise _Unusable(f"not readable as HTML: {error}") from None
    return text, {"type": "html", "title": title} if title else {"type": "html"}


def _pdf(data: bytes) -> tuple[str, dict[str, str]]:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise _Unusable("PDF needs pypdf: pip install 'flowserve[ingest]'") from None
    pages: list[str] = []
    length = 0
    try:
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise _Unusable("a PDF with a password")
        for page in reader.pages:
            pages.append(page.extract_text())
            length += len(pages[-1])
            if length > MAX_TEXT_CHARS:
                break
    except _Unusable:
        raise
    except Exception as error:  # noqa: BLE001 - pypdf raises nearly anything on damaged files
        raise _Unusable(f"not readable as PDF: {error}") from None
    # Broken fonts give lone surrogates, which no JSON and no tokenizer takes.
    text = "\n\n".join(pages).encode("utf-8", errors="replace").decode("utf-8")
    return text, {"type": "pdf", "pages": str(len(pages))}


READERS: dict[str, Callable[[bytes], tuple[str, dict[str, str]]]] = {
    ".txt": _plain,
    ".text": _plain,
    ".rst": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}
"""Suffix to (bytes -> text, metadata)."""
