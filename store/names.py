"""What a name may be: agents' ids and tags, which are text and never paths."""

__all__ = ["LONGEST_NAME", "is_agent_id", "is_tag"]

LONGEST_NAME = 512


def is_agent_id(name: object) -> bool:
    """Say whether `name` is text of 1 to 512 bytes in UTF-8.

    Examples
    --------
    >>> is_agent_id("../critic"), is_agent_id(""), is_agent_id(chr(0xD800))
    (True, False, False)
    """
    if not isinstance(name, str):
        return False
    try:
        return 1 <= len(name.encode("utf-8")) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def is_tag(name: object) -> bool:
    """Say whether `name` can be a tag: what can be an agent's id, and is no number, since numbers are generations.

    Examples
    --------
    >>> is_tag("round-3"), is_tag("3")
    (True, False)
    """
    return is_agent_id(name) and not str(name).isdecimal()
