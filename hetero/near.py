"""What somebody may have meant who wrote a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a refusal: the names most like it, or `otherwise` where none is; without that, all
    there are."""
    names = list(known)
    found = get_close_matches(name.lower(), names, n=3)
    if found:
        return f"; did you mean {' or '.join(found)}?"
    return otherwise or f"; need one of {', '.join(names)}"
