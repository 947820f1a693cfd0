import json

import pytest

from benchmarks import feeding, throughput
from benchmarks.throughput import Size
from pretrain.models.decoder import DecoderConfig


@pytest.mark.shared_data
def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys, shared_data):
    small = Size("aimv2_nano_patch4_32", DecoderConfig(embed_dim=64, depth=1, num_heads=1), 2048, batch_size=2)
    monkeypatch.setitem(throughput.SIZES, "nano", small)
    out = tmp_path / "out.json"
    args = ["--path", str(shared_data / "flickr1k/val-000000.tar"), "--sizes", "nano", "--rounds", "1"]
    assert feeding.main([*args, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    row = result["feeding"][0]
    assert row["share"] == pytest.approx(row["fed_imgs_per_s"] / row["repeated_imgs_per_s"])
    assert f"share {result['decoding']['share']:.2f}" in capsys.readouterr().out


def test_no_shards_is_one_line(capsys):
    assert feeding.main(["--path", "nowhere.tar"]) == 2
    assert "nowhere.tar" in capsys.readouterr().err
