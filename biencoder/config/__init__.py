"""The settings of a run: `schema` has every key with its type, bounds and meaning, `load` makes a `Config` of a file and of
the command line, `keys` says what each key is without checking values, and `paths` finds files as users name them.

Imports errors alone. Nothing is imported here: `--help` needs `keys`, and not pydantic.
"""
