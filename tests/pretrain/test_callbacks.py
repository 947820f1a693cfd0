import math

import pytest
import torch

from pretrain.callbacks.baselines import mean_patch_mse, unigram_ce, unigram_log_probability
from pretrain.callbacks.checkpoint import AtomicCheckpointIO
from pretrain.callbacks.pictures import GREY, draw_figure, predicted_pictures
from pretrain.callbacks.throughput import RateMeter
from pretrain.files import write_atomically
from pretrain.types import ImageSpec, UserError


class FakeClock:
    now = 0.0

    def __call__(self):
        return self.now


def test_ten_steps_of_a_tenth_of_a_second_at_batch_8_are_80_images_per_second():
    clock = FakeClock()
    meter = RateMeter(clock=clock)
    meter.start()
    for _ in range(10):
        clock.now += 0.1
        meter.step(8)
    assert meter.imgs_per_s == pytest.approx(80)
    clock.now += 100  # a validation
    meter.start()
    clock.now += 0.1
    meter.step(8)
    assert meter.mean_imgs_per_s == pytest.approx(80)


def test_the_current_rate_forgets():
    clock = FakeClock()
    meter = RateMeter(window=2, clock=clock)
    meter.start()
    for seconds in (10, 1, 1):
        clock.now += seconds
        meter.step(4)
    assert meter.imgs_per_s == pytest.approx(4)
    assert meter.mean_imgs_per_s == pytest.approx(1)


def test_unigram_by_hand():
    # tokens 0 0 1, and one more of each of the 4 words: counts 3 2 1 1 of 7
    log_probability = unigram_log_probability([[0, 0], [1]], vocab_size=4)
    assert log_probability.exp().tolist() == pytest.approx([3 / 7, 2 / 7, 1 / 7, 1 / 7])
    assert unigram_ce(log_probability, [[0, 3]]) == pytest.approx(-(math.log(3 / 7) + math.log(1 / 7)) / 2)
    assert unigram_ce(log_probability, [[]]) is None


def test_mean_patch_by_hand():
    # one picture, three patches of two pixels; mean patch (1, 1); behind a prefix of 1: errors 0, 1 and 4, 0
    patches = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 1.0]]])
    assert mean_patch_mse(torch.ones(2), patches, prefix_len=1) == pytest.approx((0 + 1 + 4 + 0) / 4)


def test_predicted_pictures_keep_the_prefix_and_show_the_predictions(tiny):
    encoder, objective = tiny()
    spec = ImageSpec(16)
    image = spec.normalise(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    visible, predicted = predicted_pictures(objective, encoder, image, prefix_len=4, spec=spec)
    truth = spec.denormalise(image)
    assert torch.equal(visible[:, :, :4], truth[:, :, :4])  # the prefix is the first row of patches
    assert (visible[:, :, 4:] == GREY).all()
    assert torch.equal(predicted[:, :, :4], truth[:, :, :4])
    assert (predicted[:, :, 4:] != truth[:, :, 4:]).float().mean() > 0.9
    # a head that predicts 0 shows each patch's mean: flat patches
    objective.decoder.pixel_head.weight.data.zero_()
    _, flat = predicted_pictures(objective, encoder, image, prefix_len=4, spec=spec)
    patch = flat[0, :, 8:12, 4:8].float()
    assert (patch.flatten(1).std(1) < 45).all()
    figure = draw_figure([("picture", truth)], references=["a $ sign", ""], captions=["x\x07", "y"], title="t")
    assert len(figure.axes) == 4


def test_normalise_and_back():
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    spec = ImageSpec(4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 1.0))
    normal = spec.normalise(image)
    assert normal[0, 1, 0, 0] == pytest.approx((image[0, 1, 0, 0].item() / 255 - 0.25) / 0.5, abs=1e-6)
    assert torch.equal(spec.denormalise(normal), image)


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def full_disk(checkpoint, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"No space.*the last one there is whole"):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"state": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")


def test_write_atomically_replaces(tmp_path):
    write_atomically(tmp_path / "a" / "b.json", b"1")
    write_atomically(tmp_path / "a" / "b.json", b"2")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"2"
    assert len(list((tmp_path / "a").iterdir())) == 1
