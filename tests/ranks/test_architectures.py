"""Two ranks train every architecture of the table, under ZeRO 1 and 3, in one start. Texts that
can be packed are packed under ZeRO 3, and the losses are the same."""

import json
from pathlib import Path

import pytest

from tests import encoders
from tests.launch import run_ranks

pytestmark = pytest.mark.ranks


def test_every_architecture_trains_with_two_ranks_under_zero_1_and_3(tmp_path: Path) -> None:
    folders = [str(encoders.write(kind, tmp_path / kind)) for kind in encoders.KINDS]
    modes, out = ["zero1 fp32", "zero3 fp32"], tmp_path / "found.json"
    ends, _ = run_ranks("engine.architectures", 2, timeout_s=400, folders=folders, files=modes, out=str(out))
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-3000:]
    found = json.loads(out.read_text())
    assert list(found) == list(encoders.KINDS)
    for kind, of_mode in found.items():
        first, third = (of_mode[mode]["losses"] for mode in modes)
        assert first[-1] < first[0], kind
        assert third == pytest.approx(first, rel=1e-4), kind
        assert all(of_mode[mode]["away"] < 1e-5 for mode in modes), kind
