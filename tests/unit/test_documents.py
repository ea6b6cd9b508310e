"""What is printed about the program in its documents is what the program is."""

from pathlib import Path

from biencoder.config import describe
from docs import configuration


def test_the_page_of_keys_is_the_one_that_the_code_makes() -> None:
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(), "run `python docs/configuration.py`"


def test_every_key_is_on_it_once_with_its_recipes() -> None:
    rows = configuration.page().splitlines()
    for key in describe():
        (row,) = (row for row in rows if row.startswith(f"| `{key}` |"))
        for recipe in configuration.recipes_of_keys().get(key, []):
            assert Path(f"configs/{recipe}.toml").is_file()
            assert recipe in row
