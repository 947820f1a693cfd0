import json

from benchmarks.curves import main, read_metrics, smooth


def make_run(folder):
    folder.mkdir()
    (folder / "metrics_1.csv").write_text("step,train/text_ce,val/text_ce\n0,5.0,\n10,4.0,\n20,9.0,\n")
    (folder / "metrics.csv").write_text("step,train/text_ce,val/text_ce\n20,3.0,\n29,,2.5\n")
    (folder / "summary.json").write_text(json.dumps({"baseline": {"text_ce": 6.0}}))
    return folder


def test_attempts_are_joined_and_the_later_wins(tmp_path):
    metrics = read_metrics(make_run(tmp_path / "a"))
    assert metrics["train/text_ce"] == [(0, 5.0), (10, 4.0), (20, 3.0)]
    assert metrics["val/text_ce"] == [(29, 2.5)]


def test_smooth_by_hand():
    assert smooth([0.0, 3.0, 6.0, 0.0], window=3).tolist() == [1.5, 3.0, 3.0, 3.0]


def test_the_command_draws(tmp_path, capsys):
    out = tmp_path / "x" / "curves.png"
    assert main([str(make_run(tmp_path / "a")), "--out", str(out)]) == 0
    assert out.stat().st_size > 5000
    assert main([str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert "no metrics.csv" in capsys.readouterr().err
