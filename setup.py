"""Puts into a wheel what the commands find by relative paths: recipes, DeepSpeed's settings and the embedded corpora.

Everything else about the package stands in pyproject.toml. In a wheel these folders are `biencoder/shipped/`; in a checkout
they are where they are.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "ds_configs", "examples")


class BuildWithShippedFiles(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._shipped():
                self.mkpath(str(target.parent))
                self.copy_file(source, str(target))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(source for source, _ in self._shipped())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        shipped = [] if self.editable_mode else [str(target) for _, target in self._shipped()]
        return [*super().get_outputs(include_bytecode), *shipped]

    def _shipped(self) -> list[tuple[str, Path]]:
        """(file in the checkout, its place in the build)."""
        place = Path(self.build_lib) / "biencoder" / "shipped"
        files = [path for folder in FOLDERS for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return [(str(file), place / file) for file in files if "__pycache__" not in file.parts]


setup(cmdclass={"build_py": BuildWithShippedFiles})
