import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import throughput
from benchmarks.throughput import DenseObjective, Size, make_step, peak_mib
from pretrain.models.decoder import DecoderConfig

SMALL = Size("aimv2_nano_patch4_32", DecoderConfig(embed_dim=64, depth=1, num_heads=1), 300, batch_size=2)


def test_dense_objective_is_the_same_loss(tiny, make_batch):
    encoder, objective = tiny()
    dense = DenseObjective(objective.config, encoder=encoder, vocab_size=29)
    dense.load_state_dict(objective.state_dict())
    batch = make_batch((3, 8, 1, 5))
    batch.position_B += 100
    for name, term in objective(encoder, batch).items():
        other = dense(encoder, batch)[name]
        torch.testing.assert_close(term.total, other.total)
        assert term.count == other.count


def test_closed_form_flops_agree_with_torchs_counter():
    """Torch counts attention over all pairs and does not see the blocked vocabulary loss's own products; the rest must agree."""
    step, flops = make_step(SMALL, "bf16", dense=False)
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    sequence = 64 + 32
    causal_half = 3 * 4 * 2 * (sequence**2 - sequence * (sequence + 1) // 2) * 64
    assert counter.get_total_flops() == pytest.approx(flops + causal_half, rel=0.01)


def test_peak_memory_by_hand():
    # two blocks of 1 MiB alive together, then one of 1 MiB
    def function():
        a, b = torch.zeros(2**18), torch.zeros(2**18)
        del a, b
        torch.zeros(2**18)

    assert peak_mib(function) == pytest.approx(2, abs=0.1)


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "SIZES", {"nano": SMALL})
    monkeypatch.setattr(throughput, "GEMM_SIDES", (64,))
    out = tmp_path / "out.json"
    assert throughput.main(["--sizes", "nano", "--precisions", "fp32", "--rounds", "1", "--out", str(out)]) == 0
    row = json.loads(out.read_text())["steps"][0]
    assert row["imgs_per_s"] == pytest.approx(2 / (row["step_ms"] / 1e3))
    assert row["share_of_gemm"] == pytest.approx(row["step_gflop"] / row["step_ms"] * 1e3 / row["gemm_gflops_per_s"])
    assert row["speedup_over_dense"] == pytest.approx(row["dense_ms"] / row["step_ms"])
    assert "share" in capsys.readouterr().out
