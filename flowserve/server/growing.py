"""Text that is sent while it grows, across attempts: what a client has seen cannot be taken back."""

from flowserve.errors import EngineError


class Diverged(EngineError):
    """A later attempt wrote something else than what was sent already."""


class Growing:
    """What one reader was sent of one text.

    A node that is tried again begins anew; the new text is compared with what was sent, and only what goes beyond it
    is new. A dialect that cannot take text back (OpenAI's) needs this; the native door tells of the retry instead.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._seen = ""
        """What earlier attempts sent and this one has not repeated yet."""

    @property
    def sent(self) -> str:
        return "".join(self._parts)

    def restart(self) -> None:
        """The text begins anew."""
        self._seen = self.sent

    def add(self, text: str) -> str:
        """The part of `text`, which comes next in this attempt, that is new to the reader."""
        if self._seen:
            known = self._seen[: len(text)]
            if text[: len(known)] != known:
                raise Diverged("the call was tried again and its text differs from what was sent already")
            self._seen = self._seen[len(known) :]
            text = text[len(known) :]
        if text:
            self._parts.append(text)
        return text

    def finish(self, whole: str) -> str:
        """The rest of `whole`, the final text."""
        sent = self.sent
        if not whole.startswith(sent):
            raise Diverged("the final text differs from what was sent already")
        self._parts = [whole]
        self._seen = ""
        return whole[len(sent) :]
