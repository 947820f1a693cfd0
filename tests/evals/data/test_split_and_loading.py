"""Parts of a training set, and batches of a set with what cannot be read."""

import numpy as np
import pytest
import torch
from PIL import Image

from evals.data.augment import AugmentTransform
from evals.data.labelled import BadSample, LabelledSet, Subset
from evals.data.loading import SetLoader, TransformedSet, set_loader
from evals.data.split import few_shot_indices, hold_out
from evals.transforms import ImageTransform
from pretrain.types import Fault, ImageSpec, UserError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [1, 2, 10, 87]))


class TestHoldOut:
    @pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_both_parts_have_every_class_that_can_be_split(self, share, seed):
        fit, held = hold_out(LABELS, share=share, seed=seed)
        assert sorted([*fit, *held]) == list(range(100))
        assert list(fit) == sorted(fit)
        assert list(held) == sorted(held)
        for label, count in {1: 2, 2: 10, 5: 87}.items():
            parts = (LABELS[fit] == label).sum(), (LABELS[held] == label).sum()
            assert min(parts) >= 1
            assert abs(parts[1] - share * count) <= 1
        assert (LABELS[held] == 0).sum() == 0, "a class of one picture stays in fit"

    def test_by_hand(self):
        """A fifth of two classes of 10 and 20: exactly 2 and 4."""
        labels = np.repeat([3, 4], [10, 20])
        fit, held = hold_out(labels, share=0.2, seed=0)
        assert np.bincount(labels[held], minlength=5).tolist() == [0, 0, 0, 2, 4]
        assert len(fit) == 24

    def test_it_is_a_function_of_seed_and_labels(self):
        first, again, other = (hold_out(LABELS, share=0.3, seed=seed)[1].tolist() for seed in (0, 0, 1))
        assert first == again != other

    def test_the_total_is_right_on_average(self):
        """1,000 classes of 5, a tenth: 500 expected of each class's 0.5; at least one each would be 1,000."""
        labels = np.repeat(np.arange(1000), 25)
        total = len(hold_out(labels, share=0.1, seed=0)[1])
        assert abs(total - 2500) < 60  # deviation sqrt(1000 / 4) = 16

    def test_nothing_to_hold_out(self):
        fit, held = hold_out(np.arange(4), share=0.5, seed=0)
        assert (fit.tolist(), held.tolist()) == ([0, 1, 2, 3], [])

    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
    def test_shares_that_are_none(self, share):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            hold_out(LABELS, share=share, seed=0)


class TestFewShot:
    def test_so_many_of_each_class(self):
        labels = LABELS[LABELS > 1]
        chosen = few_shot_indices(labels, shots=5, seed=0)
        assert len(set(chosen.tolist())) == 10
        assert np.bincount(labels[chosen]).tolist() == [0, 0, 5, 0, 0, 5]
        assert set(few_shot_indices(labels, shots=2, seed=0)) < set(chosen)
        assert set(few_shot_indices(labels, shots=5, seed=1)) != set(chosen)

    def test_errors(self):
        with pytest.raises(UserError, match="shots=2: class 0 has 1 pictures"):
            few_shot_indices(LABELS, shots=2, seed=0)
        with pytest.raises(UserError, match="shots=0 must be at least 1"):
            few_shot_indices(LABELS, shots=0, seed=0)


class Numbers(LabelledSet):
    """Picture i is all of level i; the pictures in `bad` cannot be read."""

    name, split, classes = "numbers", "test", ("a", "b")

    def __init__(self, count, bad=()):
        self.label_N, self.bad = np.arange(count) % 2, set(bad)

    def load(self, index):
        if index in self.bad:
            raise BadSample(Fault("corrupt", self.key(index), "made so"))
        rng = np.random.default_rng(index)
        noise = rng.integers(0, 200, (9, 9, 3), dtype=np.uint8)
        noise[4, 4] = index
        return Image.fromarray(noise)

    def key(self, index):
        return f"picture{index}"

    def pictures_identity(self):
        return "numbers"


TRANSFORM = ImageTransform(ImageSpec(9))


def levels(batch):
    return batch.image_BCHW[:, 0, 4, 4].tolist()


class TestLoading:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_order_labels_and_faults(self, num_workers):
        """Nothing takes the place of a picture that cannot be read."""
        order = [5, 3, 8, 0, 2, 1]
        loader = set_loader(
            Numbers(30, bad=[3]), TRANSFORM, batch_size=4, index_N=np.array(order), num_workers=num_workers
        )
        first, second = list(loader)
        assert levels(first) == first.index_B.tolist() == [5, 8, 0]
        assert first.label_B.tolist() == [1, 0, 0]
        assert (first.image_BCHW.dtype, first.image_BCHW.shape) == (torch.uint8, (3, 3, 9, 9))
        assert second.index_B.tolist() == [2, 1]
        assert first.faults == loader.faults == [(3, Fault("corrupt", "picture3", "made so"))]
        assert (second.faults, len(loader), len(first)) == ([], 2, 3)

    def test_whole_set_in_order_and_last_batches(self):
        assert [b.index_B.tolist() for b in set_loader(Numbers(5), TRANSFORM, batch_size=2)] == [[0, 1], [2, 3], [4]]
        loader = set_loader(Numbers(5), TRANSFORM, batch_size=2, drop_last=True)
        assert [b.index_B.tolist() for b in loader] == [[0, 1], [2, 3]]

    def test_a_batch_may_be_empty(self):
        (batch,) = set_loader(Numbers(40, bad=[0, 1]), TRANSFORM, batch_size=2, index_N=[0, 1])
        assert len(batch) == 0
        assert batch.image_BCHW.shape[0] == 0
        assert [index for index, _ in batch.faults] == [0, 1]

    def test_too_many_unreadable(self):
        """5% of 40 are 2; of fewer than 20 pictures one may be unreadable."""
        assert len(list(set_loader(Numbers(40, bad=[0, 9]), TRANSFORM, batch_size=10))) == 4
        message = (
            r"numbers test: 3 of 40 pictures cannot be read, more than 5%; the first is picture0 \(corrupt: made so\)"
        )
        for num_workers in (0, 1):
            with pytest.raises(UserError, match=message):
                list(set_loader(Numbers(40, bad=[0, 9, 39]), TRANSFORM, batch_size=10, num_workers=num_workers))
        list(set_loader(Numbers(3, bad=[1]), TRANSFORM, batch_size=10))
        with pytest.raises(UserError, match="2 of 3 pictures"):
            list(set_loader(Numbers(3, bad=[1, 2]), TRANSFORM, batch_size=10))
        loose = set_loader(Numbers(3, bad=[1, 2]), TRANSFORM, batch_size=10, max_fault_share=0.9)
        assert isinstance(loose, SetLoader)
        assert (len(list(loose)), len(loose.faults)) == (1, 2)
        assert (len(list(loose)), len(loose.faults)) == (1, 2), "counted anew each time"

    def test_augmented_pictures_are_the_same_in_any_worker_and_order(self):
        transform = AugmentTransform(ImageSpec(8), 0)

        def pictures(epoch, order=None, **options):
            loader = set_loader(Numbers(12), transform, batch_size=5, index_N=order, epoch=epoch, **options)
            return {int(i): p.numpy().tobytes() for b in loader for i, p in zip(b.index_B, b.image_BCHW)}

        plain = pictures(1)
        assert pictures(1, num_workers=2) == plain
        assert pictures(1, order=list(range(11, -1, -1)), num_workers=1) == plain
        others = pictures(2)
        assert all(others[index] != plain[index] for index in plain)
        with pytest.raises(ValueError, match="needs the epoch"):
            TransformedSet(Numbers(2), transform)

    def test_workers_have_one_thread(self):
        class Threads(Numbers):
            def load(self, index):
                return Image.new("RGB", (9, 9), (torch.get_num_threads(), 0, 0))

        batches = list(set_loader(Threads(4), TRANSFORM, batch_size=2, num_workers=2))
        assert [levels(batch) for batch in batches] == [[1, 1], [1, 1]]

    def test_subsets_have_their_own_numbers(self):
        subset = Subset(Numbers(30), np.array([9, 4]))
        (batch,) = set_loader(subset, TRANSFORM, batch_size=2)
        assert (batch.index_B.tolist(), levels(batch), batch.label_B.tolist()) == ([0, 1], [9, 4], [1, 0])

    def test_moving(self):
        (batch,) = set_loader(Numbers(2), TRANSFORM, batch_size=2)
        moved = batch.to("meta")
        assert {moved.image_BCHW.device.type, moved.index_B.device.type, moved.label_B.device.type} == {"meta"}
        assert moved.faults == batch.faults
