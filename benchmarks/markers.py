"""Text that programs write between the markers of a document."""

import re

__all__ = ["between"]


def between(document: str, name: str, text: str) -> str:
    r"""Put a text between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises
    ------
    ValueError
        The document does not have each marker once.

    Examples
    --------
    >>> between("a <!-- soak:begin -->old<!-- soak:end --> z", "soak", "new")
    'a <!-- soak:begin -->\n\nnew\n\n<!-- soak:end --> z'
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"it must have {begin} ... {end} once, to write between")
    block = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return block.sub(lambda _match: f"{begin}\n\n{text.strip()}\n\n{end}", document)
