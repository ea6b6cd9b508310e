"""The mutations that `tests/mutations.py` runs still apply: the text that each replaces stands in its file, once."""

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies_and_its_tests_are_there(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1
    file, *test = mutation.tests.split("::")
    assert (ROOT / file).is_file()
    assert all(f"def {name.split('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8") for name in test)
