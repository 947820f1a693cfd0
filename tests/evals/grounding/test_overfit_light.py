"""The command that over-fits eight photographs with the light head."""

import json

import pytest
from PIL import Image

from evals.grounding import overfit_light
from evals.grounding.overfit_dino import SENT_IDS

ENCODER = "random:timm:aimv2_nano_patch4_32[depth=1,embed_dim=32,num_heads=2]"


@pytest.mark.shared_data
def test_the_command_falls_short_after_two_steps(shared_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overfit_light, "STEPS_PER_EPOCH", 2)
    args = ["--data", str(shared_data), "--out", str(tmp_path), "--epochs", "1"]
    assert overfit_light.main([*args, "--encoder", ENCODER, "--img_size", "32"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert "'the couch'  box 2, 240, 257, 392" in lines[0]
    assert lines[16].startswith("step    2")
    assert lines[-1].startswith("FELL SHORT: precision@1 ")
    row = json.loads((tmp_path / "overfit.json").read_text())
    assert (row["metric"], row["n"], len(row["pictures"]), row["passed"]) == ("precision@1", 16, 8, False)
    assert row["sent_ids"] == list(SENT_IDS)
    (point,) = row["curve"]
    assert point["step"] == 2
    assert point["loss"] > 0
    assert row["value"] == point["precision@1"]
    assert 0 <= row["controls"]["other_sentence"] <= 100
    assert min(Image.open(tmp_path / "examples.png").size) > 500


def test_what_cannot_be_meant_is_one_line(tmp_path, capsys):
    for args, message in [
        (["--data", str(tmp_path)], "refcoco_mini"),
        (["--epochs", "0"], "light.epochs=0 must be above 0"),
        (["--lr", "-1"], "light.lr=-1.0 must be above 0"),
        (["--steps", "3"], "--steps"),
    ]:
        assert overfit_light.main([*args, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert message in error
        assert "\n" not in error
    assert not (tmp_path / "out").exists()
