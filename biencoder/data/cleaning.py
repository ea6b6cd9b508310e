r"""Text cleaning: remove HTML entities, footnote marks and a trailing reference list, which give a match away.

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
    """Decode HTML entities, remove footnote marks and trailing references, and normalise blanks and line breaks.

    The time is proportional to the length of the text, for any text.
    """
    plain = _without_entities(text).replace("\u00a0", " ").strip()
    lines = plain.splitlines()
    if "[" not in plain:  # no mark, and so no references
        return normalise("\n".join(lines))
    return normalise(_without_marks("\n".join(_without_references(lines))))


def tidier(cleans: bool) -> Callable[[str], str]:
    """The treatment of a corpus's texts, and of every query to it: `clean`, or only `normalise`."""
    return clean if cleans else normalise


def normalise(text: str) -> str:
    """Replace each run of blanks by one blank, and each run of line breaks by one line break."""
    return _BLANK_LINES.sub("\n", _BLANKS.sub(" ", text)).strip()


def _without_entities(text: str) -> str:
    # A number of eight digits is beyond Unicode already. Python refuses to read one of thousands of digits.
    return html.unescape(_NUMBER.sub(r"&#\1", text)) if "&" in text else text


def _without_marks(text: str) -> str:
    """Remove footnote marks and the blanks before them.

    A pattern that begins with blanks would take quadratic time on a long run of blanks.
    """
    parts, end = [], 0
    for mark in _MARK.finditer(text):
        parts.append(text[end : mark.start()].rstrip())
        end = mark.end()
    return "".join([*parts, text[end:]])


def _without_references(lines: list[str]) -> list[str]:
    """Cut at the first line, after line 1, that starts with a mark and from which on at least half of the lines do.

    Half is enough because an entry may wrap. The heading above the list goes as well.
    """
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
