"""The readable text of an HTML page, with blank lines where blocks end."""

import re

BLOCK = re.compile(
    "^(?:address|article|aside|blockquote|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|li|"
    "main|nav|ol|p|pre|section|summary|table|tr|ul)$"
)
UNREAD = ("script", "style", "noscript", "template", "head")


def html_text(data: bytes) -> tuple[str, str]:
    """Title (may be empty) and text. The encoding is the page's own business: mark, meta tag or guess."""
    from bs4 import BeautifulSoup
    from bs4.element import PreformattedString

    soup = BeautifulSoup(data, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title is not None else ""
    for tag in soup(UNREAD):
        tag.extract()
    for string in list(soup.find_all(string=True)):
        if isinstance(string, PreformattedString):  # comments, doctype, CDATA
            string.extract()
        elif string.find_parent("pre") is None:
            string.replace_with(re.sub(r"\s+", " ", string))
    for line_break in soup("br"):
        line_break.replace_with("\n")
    for block in soup(BLOCK):
        block.insert_before("\n\n")
        block.insert_after("\n\n")
    for cell in soup(["td", "th"]):
        cell.insert_after(" ")
    text = "\n".join(line.strip() if line.isspace() else line.rstrip() for line in soup.get_text().split("\n"))
    text = re.sub(r"(?m)^ (?=\S)", "", text)  # the space that a collapsed line break left behind
    return title, re.sub(r"\n{3,}", "\n\n", text).strip()
