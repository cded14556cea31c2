"""Numbers and names in words for people."""

__all__ = ["count_of", "in_bytes", "shown"]


def shown(text: str) -> str:
    r"""Return text as a terminal may get it: agents and files may carry names that would steer it.

    Examples
    --------
    >>> shown("critic \x1b[2J")
    'critic \\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_bytes(n_bytes: float) -> str:
    """Return a size.

    Examples
    --------
    >>> in_bytes(512), in_bytes(200_000_000)
    ('512 B', '190.7 MiB')
    """
    size, unit = float(n_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> count_of(1, "block"), count_of(1200, "block")
    ('1 block', '1,200 blocks')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
