import json

import pytest

from benchmarks import step_scaling


def test_exponents_by_hand():
    assert step_scaling.exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert step_scaling.exponent([64, 256, 1024], [1, 16, 256]) == pytest.approx(2)


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_scaling, "WIDTHS", (64, 128))
    monkeypatch.setattr(step_scaling, "SIDES", (2, 4))
    monkeypatch.setattr(step_scaling, "FIXED_WIDTH", 64)
    out = tmp_path / "out.json"
    assert step_scaling.main(["--rounds", "1", "--precision", "fp32", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [row["tokens"] for row in result["tokens"]] == [4, 16]
    assert result["params"][0]["block_params"] < result["params"][1]["block_params"]
    assert f"{result['params_exponent']:.2f}" in capsys.readouterr().out
