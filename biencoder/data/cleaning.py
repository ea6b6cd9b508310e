r"""What gives a match away without meaning: HTML entities, footnote marks, and the reference list at the end of a text.

>>> clean("Taxes &amp; tariffs raise prices.[1]\n\n[1] A. Author, 'On prices', 2009")
'Taxes & tariffs raise prices.'
"""

import html
import re

_MARK = r"\[\s*(?:\d{1,3}|[ivx]{1,5})\s*\]"
_INLINE_MARK = re.compile(rf"\s*{_MARK}")
_REFERENCE_LINE = re.compile(rf"\s*{_MARK}")
_HEADING = re.compile(r"\s*(?:references?|bibliography|sources?|footnotes?|notes)\s*:?\s*", re.IGNORECASE)
_BLANKS = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\s*\n\s*")


def clean(text: str) -> str:
    """The text without entities, footnote marks and trailing references; blanks and line breaks are normalised."""
    lines = html.unescape(text).replace("\u00a0", " ").strip().splitlines()
    body = "\n".join(_without_references(lines))
    return normalise(_INLINE_MARK.sub("", body))


def normalise(text: str) -> str:
    """Runs of blanks become one blank, runs of line breaks one line break."""
    return _BLANK_LINES.sub("\n", _BLANKS.sub(" ", text)).strip()


def _without_references(lines: list[str]) -> list[str]:
    """Cut at the first later line that starts with a mark, if most lines from there on do (entries may wrap)."""
    for start in range(1, len(lines)):
        if not _REFERENCE_LINE.match(lines[start]):
            continue
        rest = [line for line in lines[start:] if line.strip()]
        if 2 * sum(bool(_REFERENCE_LINE.match(line)) for line in rest) >= len(rest):
            while start > 1 and (not lines[start - 1].strip() or _HEADING.fullmatch(lines[start - 1])):
                start -= 1
            return lines[:start]
    return lines
