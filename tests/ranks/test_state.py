"""A state taken in the middle of training goes on as if nothing had happened: same ranks bit for bit, other ranks as near
as another order of summation allows."""

import json
import math
from pathlib import Path

import pytest

from tests.launch import run_ranks
from tests.modes import EACH_FILE, MODES
from tests.ranks.cases.state import WARM_UP

pytestmark = pytest.mark.ranks


def test_training_goes_on_from_a_state_on_the_same_and_on_other_numbers_of_ranks(tiny_bert: Path, tmp_path: Path) -> None:
    for case, size in (("state.save_and_go_on", 2), ("state.go_on_elsewhere", 1), ("state.go_on_elsewhere", 4)):
        files = MODES if size == 2 else EACH_FILE
        ends, _ = run_ranks(case, size, timeout_s=400, tiny_bert=str(tiny_bert), files=files, folder=str(tmp_path))
        assert [end.code for end in ends] == [0] * size, (case, size, ends[0].stderr[-3000:], ends[-1].stderr[-3000:])
    for mode in MODES:
        name = mode.replace(" ", "_")
        found = json.loads((tmp_path / f"{name}.json").read_text())
        straight = found["straight"]
        assert found["resumed"] == straight, name
        assert found["again"] == straight, name
        for size in (1, 4) if mode in EACH_FILE else ():
            rows = json.loads((tmp_path / f"{name}.{size}.json").read_text())
            for row, expected in zip(rows, straight, strict=True):
                # As between numbers of ranks without a state: see test_engine.
                near = {"fp32": 1e-5, "fp16": 0.05, "bf16": 0.2}[mode.split()[1]]
                assert row[0] == pytest.approx(expected[0], rel=near), (name, size)
                assert row[2] == pytest.approx(expected[2], rel=1e-12), (name, size)


@pytest.mark.parametrize("size", [1, 2])
def test_a_share_of_the_pretrained_weights_is_measured_and_saved_but_not_trained(
    size: int, tiny_bert: Path, tmp_path: Path
) -> None:
    out, files = tmp_path / "out.json", [*(MODES if size == 2 else EACH_FILE)]
    settings = json.loads(Path("ds_configs/zero3.json").read_text())
    settings["zero_optimization"]["zero_hpz_partition_size"] = size  # a copy of all weights within the node
    (tmp_path / "hpz.json").write_text(json.dumps(settings))
    files.append(f"{tmp_path / 'hpz.json'} bf16")
    ends, _ = run_ranks(
        "state.measure_between_steps", size, timeout_s=300, tiny_bert=str(tiny_bert), files=files, out=str(out)
    )
    assert [end.code for end in ends] == [0] * size, ends[0].stderr[-3000:]
    for mode, found in json.loads(out.read_text()).items():
        without, shared = found["rows"]
        assert shared == without, mode  # bit for bit: measuring leaves no trace in the steps
        rounding = {"fp32": 1e-7, "fp16": 1e-3, "bf16": 8e-3}[mode.split()[1]]  # of weights near 1
        assert found["start"] <= rounding, mode
        assert found["moved"] > 1e-3, mode
        assert found["towers"] <= rounding, mode
        assert found["classifier"], mode
        assert found["vectors"] < {"fp32": 1e-5, "fp16": 0.01, "bf16": 0.05}[mode.split()[1]], mode


def test_a_step_whose_gradient_is_not_finite_on_one_rank_changes_nothing_on_any(tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    ends, _ = run_ranks(
        "state.a_step_without_finite_gradient", 2, timeout_s=300, tiny_bert=str(tiny_bert), files=EACH_FILE, out=str(out)
    )
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-3000:]
    for file, (same, skipped, steps, applied, lr) in json.loads(out.read_text()).items():
        assert (same, skipped, steps, applied) == (True, 1, 3, 2), file
        assert lr == pytest.approx(2), file  # warming up: the second update after the first, not the third


def test_a_loss_scale_that_overflows_is_halved_until_it_fits(tiny_bert: Path, tmp_path: Path) -> None:
    files = {}
    for stage, hysteresis in ((1, 1), (2, 1), (3, 1), (1, 2)):
        settings = json.loads(Path(f"ds_configs/zero{stage}.json").read_text())
        settings["fp16"] |= {"initial_scale_power": 24, "hysteresis": hysteresis}
        file = tmp_path / f"zero{stage}_{hysteresis}.json"
        file.write_text(json.dumps(settings))
        files[f"{file} fp16"] = hysteresis
    out = tmp_path / "out.json"
    ends, _ = run_ranks("state.overflowing_steps", 2, timeout_s=300, tiny_bert=str(tiny_bert), files=[*files], out=str(out))
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-3000:]
    found = json.loads(out.read_text())
    for path, hysteresis in files.items():
        rows = found[path]
        applied = skipped = 0
        for i, row in enumerate(rows):
            assert row["lr"] == pytest.approx(1e-3 * (applied + 1) / WARM_UP), (
                file,
                i,
            )  # warming up with applied updates only
            overflowed = not math.isfinite(row["grad_norm"])
            skipped, applied = skipped + overflowed, applied + (not overflowed)
            assert (row["same"], row["skipped_steps"]) == (overflowed, skipped), (file, i)
            assert row["loss_scale"] == 2.0 ** (24 - max(0, skipped + 1 - hysteresis)), (file, i)  # the first are forgiven
        assert applied == 3, file
        assert skipped > 2, file
