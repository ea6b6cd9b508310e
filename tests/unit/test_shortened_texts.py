"""A text that is too long to show says how much of it is missing."""

from biencoder.tracking.formats import shortened


def test_what_is_not_shown_is_counted_and_a_short_text_is_left_alone() -> None:
    assert shortened("a" * 300, 300) == "a" * 300
    for text in ("a" * 301, "a b" * 4_000):
        found = shortened(text, 300)
        shown, missing = found.removesuffix(" more characters").split(" … and ")
        assert text.startswith(shown)
        assert int(missing.replace(",", "")) == len(text) - len(shown)
        assert 250 < len(found) <= 300
