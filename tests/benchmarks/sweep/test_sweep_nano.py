import json

import pytest
import yaml

from benchmarks.sweep.__main__ import main
from benchmarks.sweep.config import FOLDER


@pytest.mark.timeout(600)
def test_two_real_trials_of_the_shipped_example(tmp_path):
    sweep = yaml.safe_load((FOLDER / "nano_rate.yaml").read_text())
    sweep["overrides"] |= {
        "max_samples": 96,
        "trainer.val_check_interval": 3,
        "data.num_val": 16,
        "model.optim.warmup_samples": 16,
    }
    sweep["overrides"] |= {"checkpoint.every_n_train_steps": 3, "data.vocab_size": 300}
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    assert main([str(path), "--trials", "2", "--workers", "1", "--out", str(out), "--results", str(tmp_path)]) == 0
    first, second = json.loads((out / "summary.json").read_text())["trials"]
    # base: lr and image weight as its file has them, weight decay of the code's defaults
    assert first["params"] == {
        "model.optim.lr": 1e-3,
        "model.optim.weight_decay": 1e-4,
        "model.objective.image_weight": 0.4,
    }
    assert [step for step, _ in first["validation"]] == [2, 5]  # the logger counts steps from 0
    assert first["value"] == pytest.approx(first["validation"][-1][1], rel=1e-4)
    made = yaml.safe_load((out / "runs" / "trial-0001" / "config.yaml").read_text())
    assert made["model"]["optim"]["lr"] == second["params"]["model.optim.lr"]  # the override has reached the run
    assert made["max_samples"] == 96
