"""Detection by names: prompts, chunks, and boxes that COCO's evaluation takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dino_cases import sample, tiny_dino, tiny_dino_config

from evals.detection.coco_eval import score
from evals.detection.feeding import DetectionBatch
from evals.detection.mmdet_io import data_sample
from evals.detection.open_vocabulary import (
    OpenVocabularyModule,
    Prompt,
    ask,
    chunk_names,
    draw_prompt,
    join_names,
    spoken,
)
from evals.grounding.dino_config import DinoTraining, LanguageConfig
from pretrain.types import UserError

CLASSES = ("Person", "traffic_light", "crab_(animal)", "dog")
NAMES = ("person", "traffic light", "crab", "dog")


def module_of(detector=None, *, classes=CLASSES, num_negatives=2, **options) -> OpenVocabularyModule:
    return OpenVocabularyModule(
        detector or tiny_dino(**options),
        DinoTraining(num_negatives=num_negatives),
        config=tiny_dino_config(**options),
        classes=classes,
        steps_per_epoch=4,
        seed=0,
    )


def batch_of(**options) -> DetectionBatch:
    boxes = [(2.0, 3.0, 10.0, 12.0), (12.0, 3.0, 20.0, 12.0), (1.0, 1.0, 5.0, 5.0)]
    return DetectionBatch([sample(*boxes, labels=[3, 1, 3], image_id=7), sample(image_id=8, **options)])


def draw(present, *, seed=0, **options):
    values = {"num_tokens": 30, "num_negatives": 2, "full_share": 1.0} | options
    return draw_prompt(present, NAMES, [2, 3, 2, 2], rng=np.random.default_rng(seed), **values)


def test_spoken():
    assert [spoken(name) for name in CLASSES] == list(NAMES)
    with pytest.raises(UserError, match=r"class '\(no\)' has no words to prompt with"):
        spoken("(no)")


def test_names_in_a_row():
    #            0123456789012345678
    assert join_names([3, 1], NAMES) == Prompt("dog. traffic light. ", (3, 1), ([[0, 3]], [[5, 18]]))


def test_chunks_by_hand():
    lengths = [2, 3, 2, 2]
    assert [c.labels for c in chunk_names(NAMES, lengths, most=3, num_tokens=99)] == [(0, 1, 2), (3,)]
    assert [c.labels for c in chunk_names(NAMES, lengths, most=9, num_tokens=5)] == [(0, 1), (2, 3)]
    assert [c.labels for c in chunk_names(NAMES, lengths, most=9, num_tokens=4)] == [(0,), (1,), (2, 3)]


def test_drawn_prompts():
    """All that is there, and of two draws those that are not: never more than two others, and never one twice."""
    seen = set()
    for seed in range(200):
        prompt = draw([1, 3], seed=seed)
        assert len(set(prompt.labels)) == len(prompt.labels)
        assert {1, 3} <= set(prompt.labels)
        seen.add(prompt.labels)
    assert {len(labels) for labels in seen} == {2, 3, 4}
    assert draw([1, 3], seed=5) == draw([1, 3], seed=5)
    assert len({labels for labels in seen if len(labels) == 2}) == 2  # their order is drawn too
    assert draw([], num_negatives=0) == Prompt("", (), ())


def test_a_random_number_of_absent_classes():
    numbers = [len(draw([], seed=seed, num_negatives=4, full_share=0.0).labels) for seed in range(400)]
    assert np.bincount(numbers, minlength=5)[1:] == pytest.approx([100] * 4, abs=35)  # uniform on 1 to 4
    half = [len(draw([], seed=seed, num_negatives=4, full_share=0.5).labels) for seed in range(400)]
    assert half.count(4) == pytest.approx(250, abs=40)  # 1/2 + 1/2 * 1/4


def test_prompts_keep_to_their_room():
    for seed in range(50):
        prompt = draw([0, 1, 2], seed=seed, num_tokens=5)
        lengths = [(2, 3, 2, 2)[label] for label in prompt.labels]
        assert sum(lengths) <= 5
        assert len(set(prompt.labels) & {0, 1, 2}) == 2  # two of those that are there fit, whichever
    assert draw([0], num_tokens=2, num_negatives=4).labels == (0,)


def test_asking():
    asked = ask(batch_of().samples[0], Prompt("dog. person. ", (3, 0), ()))
    assert asked.objects.label_N.tolist() == [0, 0]  # both dogs; the traffic light is not asked for
    assert asked.objects.box_N4[:, 0].tolist() == [2.0, 1.0]


def test_targets_stand_for_their_names():
    """The traffic light's two tokens, not its full stop: read back through the tokens of the prompt."""
    module = module_of(num_negatives=4)
    first, empty = module.data_samples(batch_of(), step=0)
    assert empty.gt_instances.bboxes.shape == (0, 4)
    tokenizer = module.detector.language_model.tokenizer
    tokenized = tokenizer([first.text], return_tensors="pt")
    spans = [first.tokens_positive[label] for label in first.gt_instances.labels.tolist()]
    places, _ = module.detector.get_positive_map(tokenized, spans)
    words = [tokenizer.convert_ids_to_tokens(tokenized.input_ids[0][tokens]) for tokens in places.values()]
    assert words == [["dog"], ["traffic", "light"], ["dog"]]


def test_a_step_trains_and_draws_new_prompts():
    module, batch = module_of(), batch_of()
    texts = {module.data_samples(batch, step=step)[0].text for step in range(10)}
    assert len(texts) > 3
    assert module.data_samples(batch, step=3)[0].text == module.data_samples(batch, step=3)[0].text
    loss, _ = module.loss(batch, step=0)
    loss.backward()
    assert torch.isfinite(loss)
    assert module.detector.query_embedding.weight.grad.abs().sum() > 0
    assert module.num_left_out == 0


def test_objects_that_no_prompt_has_room_for_are_counted():
    """Four words each, five with the full stop: 12 - 2 tokens hold two of the three classes that are there."""
    options = {"language": LanguageConfig(max_tokens=12, frozen=True)}
    module = module_of(classes=["a b c d", "b c d e", "c d e f"], num_negatives=0, **options)
    boxes = [(2.0, 3.0, 10.0, 12.0)] * 3
    module.data_samples(DetectionBatch([sample(*boxes, labels=[0, 1, 2])]), step=0)
    assert module.num_left_out == 1


def test_chunks_answer_as_they_would_alone():
    """One name a prompt: what is found for a class is what a module of that class alone finds."""
    detector = tiny_dino()
    module = module_of(detector, chunk_size=1).eval()
    module.config = replace(module.config, chunk_size=1, max_per_img=40)
    batch = batch_of(hw=(32, 32))
    found = module.predict(batch)
    for label, name in enumerate(CLASSES):
        alone = module_of(detector, classes=[name]).eval().predict(batch)
        for together, one in zip(found, alone, strict=True):
            mine = together.label_K == label
            np.testing.assert_allclose(together.score_K[mine], one.score_K, rtol=1e-4)
            np.testing.assert_allclose(together.box_K4[mine], one.box_K4, atol=1e-2)


def test_the_scores_are_mmdets():
    """All names in one prompt: mmdet's own prediction from a list of names, in its own way."""
    module, batch = module_of().eval(), batch_of(hw=(32, 32))
    found = module.predict(batch)
    with torch.no_grad():
        asked = [data_sample(one, text="person. traffic light. crab. dog. ") for one in batch.samples]
        for one in asked:
            one.set_metainfo({"custom_entities": True})
        theirs = module.detector.predict(module.pixels(batch), asked, rescale=True)
    for ours, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(ours.score_K, other.pred_instances.scores.numpy(), rtol=1e-5)
        np.testing.assert_allclose(ours.box_K4, other.pred_instances.bboxes.numpy(), rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(ours.label_K, other.pred_instances.labels.numpy())
    assert [one.image_id for one in found] == [7, 8]


def test_coco_scores_what_is_found(monkeypatch):
    """The boxes of both dogs, found with the best scores, are all right: AP of dogs 100; the file is twice the canvas."""
    module, batch = module_of().eval(), batch_of()
    box = {3: [(4.0, 6.0, 20.0, 24.0), (2.0, 2.0, 10.0, 10.0)], 1: [(24.0, 6.0, 40.0, 24.0)]}
    annotations = [
        {"image_id": 7, "category_id": 10 + label, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1.0, "iscrowd": 0}
        for label, boxes in box.items()
        for x0, y0, x1, y1 in boxes
    ]
    truth = {
        "images": [{"id": image_id, "height": 48, "width": 64, "file_name": "x"} for image_id in (7, 8)],
        "annotations": [{"id": number + 1} | one for number, one in enumerate(annotations)],
        "categories": [{"id": 10 + label, "name": name} for label, name in enumerate(NAMES)],
    }

    def forward(hidden_states, references, memory_text, text_token_mask):
        pictures = len(memory_text)
        box_LBQ4, score_LBQT = torch.zeros(1, pictures, 12, 4), torch.full((1, pictures, 12, 32), -20.0)
        for query, (x0, y0, x1, y1) in enumerate([(2, 3, 10, 12), (1, 1, 5, 5)]):
            corners = [(x0 + x1) / 64, (y0 + y1) / 48, (x1 - x0) / 32, (y1 - y0) / 24]
            box_LBQ4[0, 0, query] = torch.tensor(corners)
            score_LBQT[0, 0, query, 8] = 5.0  # [CLS] person . traffic light . crab . dog: the ninth token
        return score_LBQT, box_LBQ4

    monkeypatch.setattr(module.detector.bbox_head, "forward", forward)
    scores = score(truth, module.predict(batch), category_ids=[10, 11, 12, 13], backend="pycocotools")
    assert scores.per_class["dog"] == pytest.approx(100.0)


def test_names_that_fit_into_no_prompt():
    with pytest.raises(
        UserError, match=r"class 'one two three four five six' has 7 tokens, dino\.language\.max_tokens=8 leaves"
    ):
        module_of(classes=["dog", "one two three four five six"], language=LanguageConfig(max_tokens=8, frozen=True))
