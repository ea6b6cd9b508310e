"""Fixtures that start nodes and take them down again, whatever the test does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster
from tests.cluster.slurm import Slurm


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster.start(tmp_path / "cluster")
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """One Slurm for all tests: each leaves its nodes up and its jobs ended."""
    cluster = Slurm.start(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()
