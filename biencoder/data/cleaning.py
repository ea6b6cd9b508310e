r"""What gives a match away without meaning: HTML entities, footnote marks, and the reference list at the end of a text.

>>> clean("Taxes &amp; tariffs raise prices.[1]\n\n[1] A. Author, 'On prices', 2009")
'Taxes & tariffs raise prices.'
"""

import html
import re
from collections.abc import Callable

_MARK = re.compile(r"\[\s*(?:\d{1,3}|[ivx]{1,5})\s*\]")
_HEADING = re.compile(r"(?:references?|bibliography|sources?|footnotes?|notes)\s*:?", re.IGNORECASE)
_NUMBER = re.compile(r"&#0*([0-9]{1,8})[0-9]*")
_BLANKS = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\s*\n\s*")


def clean(text: str) -> str:
    """The text without entities, footnote marks and trailing references; blanks and line breaks are normalised.

    The time is proportional to the length of the text, whatever stands in it.
    """
    lines = _without_entities(text).replace("\u00a0", " ").strip().splitlines()
    return normalise(_without_marks("\n".join(_without_references(lines))))


def tidier(cleans: bool) -> Callable[[str], str]:
    """How a corpus takes its texts, and every query to it: cleaned, or as they stand but for their blanks."""
    return clean if cleans else normalise


def normalise(text: str) -> str:
    """Runs of blanks become one blank, runs of line breaks one line break."""
    return _BLANK_LINES.sub("\n", _BLANKS.sub(" ", text)).strip()


def _without_entities(text: str) -> str:
    # Eight digits are beyond Unicode already, and Python refuses to read numbers of thousands of digits.
    return html.unescape(_NUMBER.sub(r"&#\1", text))


def _without_marks(text: str) -> str:
    """Without footnote marks and the blanks before them. A pattern with leading blanks would try every run of blanks from
    each of its places."""
    parts, end = [], 0
    for mark in _MARK.finditer(text):
        parts.append(text[end : mark.start()].rstrip())
        end = mark.end()
    return "".join([*parts, text[end:]])


def _without_references(lines: list[str]) -> list[str]:
    """Cut at the first later line that starts with a mark, if most lines from there on do (entries may wrap)."""
    tidy = [line.strip() for line in lines]
    starts_with_mark = [_MARK.match(line) is not None for line in tidy]
    marked, written = sum(starts_with_mark), sum(map(bool, tidy))  # from this line on
    for start, line in enumerate(tidy):
        if start and starts_with_mark[start] and 2 * marked >= written:
            while start > 1 and (not tidy[start - 1] or _HEADING.fullmatch(tidy[start - 1])):
                start -= 1
            return lines[:start]
        marked, written = marked - starts_with_mark[start], written - bool(line)
    return lines
