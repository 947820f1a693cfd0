"""Grounding DINO: mmdet's recipe, its repairs, what a step trains, and where answers lie."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dino_cases import sample, tiny_dino

from evals.detection.mmdet_io import data_sample, normalised
from evals.detection.mmdet_setup import use_mmdet
from evals.grounding.batches import ExpressionBatch
from evals.grounding.dino_config import DinoTraining, LanguageConfig, load_recipe
from evals.grounding.dino_model import detector_class, detector_settings
from evals.grounding.dino_module import GroundingDinoModule, rate_schedule, sentence_prompt
from pretrain.types import ImageSpec, UserError

use_mmdet()


def batch_of(texts=("The red cat", "a dog that sits beside the old brown sofa."), **options) -> ExpressionBatch:
    boxes = [(2.0, 3.0, 10.0, 12.0), (12.0, 3.0, 20.0, 12.0)]
    samples = [sample(boxes[number % 2], image_id=number, **options) for number in range(len(texts))]
    return ExpressionBatch(samples, list(texts), [10 + number for number in range(len(texts))])


def module_of(detector, **options) -> GroundingDinoModule:
    return GroundingDinoModule(detector, DinoTraining(**options), steps_per_epoch=4, seed=0)


def step(module, batch, number=0):
    """One step of the optimiser, its own one, without decay."""
    configured = module.configure_optimizers()
    configured["optimizer"].zero_grad()
    loss, _ = module.loss(batch, step=number)
    loss.backward()
    configured["optimizer"].step()
    return loss


def mmdet_config(name):
    import mmdet
    from mmengine.config import Config

    return Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / "mm_grounding_dino" / name)


def same(ours, theirs, *, where="") -> list[str]:
    """Where settings of ours that mmdet's config has too differ from it."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [line for key in ours if key in theirs for line in same(ours[key], theirs[key], where=f"{where}.{key}")]
    if isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for number, (one, other) in pairs for line in same(one, other, where=f"{where}.{number}")]
    return [] if ours == theirs else [f"{where}: {ours} is {theirs} in mmdet"]


def test_the_recipe_is_mmdets():
    theirs = mmdet_config("grounding_dino_swin-t_pretrain_obj365.py")
    recipe = load_recipe("mm_grounding_dino")
    ours = detector_settings(recipe.dino)
    found = same(ours, theirs.model.to_dict())
    # its text encoder is another one, and layers are recomputed by torch, not by fairscale
    assert sorted(line.split(":")[0] for line in found) == [
        ".encoder.num_cp",
        ".language_model.name",
        ".language_model.type",
    ]
    assert recipe.dino.checkpointing
    assert theirs.model.encoder.num_cp == 6
    assert ours["num_feature_levels"] == theirs.model.neck.num_outs == 4  # mmdet's default number of levels
    wanted = {
        "num_queries",
        "encoder",
        "decoder",
        "bbox_head",
        "dn_cfg",
        "train_cfg",
        "positional_encoding",
        "test_cfg",
    }
    assert wanted <= set(ours) & set(theirs.model)


def test_the_training_is_mmdets():
    pretrain = mmdet_config("grounding_dino_swin-t_pretrain_obj365.py")
    refcoco = mmdet_config("refcoco/grounding_dino_swin-t_finetune_8xb4_5e_refcoco.py")
    training = load_recipe("mm_grounding_dino").training
    optim = refcoco.optim_wrapper
    assert (training.lr, training.weight_decay) == (optim.optimizer.lr, optim.optimizer.weight_decay)
    assert training.clip == optim.clip_grad.max_norm
    assert training.epochs == refcoco.train_cfg.max_epochs
    assert training.backbone_factor == optim.paramwise_cfg.custom_keys.backbone.lr_mult
    assert training.language_factor == pretrain.optim_wrapper.paramwise_cfg.custom_keys.language_model.lr_mult
    (steps,) = refcoco.param_scheduler
    assert list(training.milestones) == steps.milestones
    assert training.gamma == steps.gamma
    assert (training.warmup_steps, training.warmup_start) == (
        pretrain.param_scheduler[0].end,
        pretrain.param_scheduler[0].start_factor,
    )
    sampling = next(t for t in pretrain.train_pipeline if t["type"] == "RandomSamplingNegPos")
    assert (training.num_negatives, load_recipe("mm_grounding_dino").dino.language.max_tokens) == (
        sampling["num_sample_negative"],
        sampling["max_tokens"],
    )
    lvis = mmdet_config("lvis/grounding_dino_swin-t_pretrain_zeroshot_lvis.py")
    assert load_recipe("mm_grounding_dino").dino.chunk_size == lvis.model.test_cfg.chunked_size


def test_sentences():
    assert sentence_prompt(" The red Cat") == ("the red cat. ", [[[0, 11]]])
    assert sentence_prompt("cat.") == ("cat. ", [[[0, 3]]])
    assert sentence_prompt("left cat. no. ") == ("left cat. no. ", [[[0, 12]]])
    assert sentence_prompt(" . ")[1] == [[[0, 1]]]


def test_tokens_of_a_sentence():
    """char_to_token of transformers' tokenizer: [CLS] the red cat . [SEP]: 1, 2 and 3 stand for the object."""
    detector = tiny_dino()
    prompt, spans = sentence_prompt("the red cat")
    tokenized = detector.language_model.tokenizer([prompt], return_tensors="pt")
    places, shares = detector.get_positive_map(tokenized, spans[0:1])
    assert places == {1: [1, 2, 3]}
    assert shares[0, :6].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0, 0], abs=1e-6)
    assert shares.shape == (1, 32)


@pytest.mark.parametrize("language_frozen", [True, False])
@pytest.mark.parametrize("backbone_frozen", [True, False])
def test_a_step_changes_what_is_trained_and_nothing_else(language_frozen, backbone_frozen):
    language = LanguageConfig(max_tokens=32, frozen=language_frozen)
    detector = tiny_dino(frozen=backbone_frozen, language=language)
    module = module_of(detector, weight_decay=0.0, lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}
    for number in range(2):  # the first finds layers of zeros, behind which nothing has a gradient
        step(module, batch_of(), number)
    changed = {name for name, parameter in detector.named_parameters() if not torch.equal(parameter, before[name])}
    frozen = {
        name
        for name in before
        if (language_frozen and name.startswith("language_model."))
        or (backbone_frozen and name.startswith("backbone."))
    }
    assert changed == set(before) - frozen
    assert {name.partition(".")[0] for name in frozen} == {
        part for part, is_frozen in (("language_model", language_frozen), ("backbone", backbone_frozen)) if is_frozen
    }


def test_a_step_is_a_function_of_its_number():
    module, batch = module_of(tiny_dino(fusion_dropout=0.2)), batch_of()
    state = torch.random.get_rng_state()
    first, again, other = (module.loss(batch, step=number)[0].item() for number in (3, 3, 4))
    assert first == again != other  # denoising and dropout
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(1)
    first = tiny_dino(seed=0).query_embedding.weight
    torch.manual_seed(2)
    assert torch.equal(tiny_dino(seed=0).query_embedding.weight, first)
    assert not torch.equal(tiny_dino(seed=1).query_embedding.weight, first)


def test_checkpointing_changes_nothing():
    plain, frugal = (module_of(tiny_dino(checkpointing=value, fusion_dropout=0.2)) for value in (False, True))
    losses = [module.loss(batch_of(), step=1)[0] for module in (plain, frugal)]
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), frugal.named_parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=name)


def trained(detector):
    """Fusion layers begin at 1e-4 of their output: make what they do visible."""
    for layer in detector.encoder.fusion_layers:
        layer.gamma_v.data.fill_(0.5)
        layer.gamma_l.data.fill_(0.5)
    return module_of(detector).eval()


@pytest.mark.parametrize("long_first", [False, True])
def test_neighbours_of_a_batch_change_nothing(long_first):
    """The same picture and sentence alone, and beside a sentence that is longer."""
    module = trained(tiny_dino())
    batch = batch_of()
    one = ExpressionBatch(batch.samples[:1], batch.texts[:1], batch.sent_ids[:1])
    if long_first:
        batch = ExpressionBatch(batch.samples[::-1], batch.texts[::-1], batch.sent_ids[::-1])
    (alone,) = module.predict(one)
    together = next(found for found in module.predict(batch) if found.sent_id == alone.sent_id)
    np.testing.assert_allclose(together.score_K, alone.score_K, atol=1e-4)
    np.testing.assert_allclose(together.box_K4, alone.box_K4, atol=1e-2)


def test_mmdets_boolean_text_mask_hides_nothing():
    """Why `forward_encoder` is ours: with mmdet's mask the picture sees padding; with a float one it does not."""
    from mmdet.models.utils.vlfuse_helper import BiMultiHeadAttention

    torch.manual_seed(0)
    attention = BiMultiHeadAttention(v_dim=8, l_dim=8, embed_dim=8, num_heads=2, dropout=0.0).eval()
    picture, text = torch.randn(1, 5, 8), torch.randn(1, 4, 8)
    other = text.clone()
    other[:, 3] = 9.0  # of the padding
    valid = torch.tensor([[True, True, True, False]])
    seen = [attention(picture, one, attention_mask_l=~valid)[0] for one in (text, other)]
    assert not torch.allclose(*seen)
    unseen = [attention(picture, one, attention_mask_l=valid.float())[0] for one in (text, other)]
    torch.testing.assert_close(*unseen)


@torch.no_grad()
def test_the_rest_of_the_encoder_is_mmdets():
    """Where there is no padding and the width is the one that mmdet's text positions have, our `forward_encoder` is mmdet's."""
    detector = trained(tiny_dino(embed_dim=256, fusion_dim=64)).detector
    batch = batch_of(texts=("the red cat",))
    samples = [data_sample(one, text="the red cat. ") for one in batch.samples]
    pixels = normalised(batch.samples, ImageSpec(32))
    text = detector.language_model(["the red cat. "])
    text["embedded"] = detector.text_feat_map(text["embedded"])
    inputs, _ = detector.pre_transformer(detector.extract_feat(pixels), samples)
    ours = detector.forward_encoder(**inputs, text_dict=text)
    theirs = super(detector_class(), detector).forward_encoder(**inputs, text_dict=text)
    assert set(ours) == set(theirs)
    for name in ("memory", "memory_text"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


def test_boxes_come_back_in_the_files_pixels(monkeypatch):
    """The picture fills 32 x 24 of the canvas, the file has 64 x 48: the middle half is 16..48 by 12..36 there."""
    module = module_of(tiny_dino()).eval()

    def forward(hidden_states, references, memory_text, text_token_mask):
        box_LBQ4 = torch.full((2, 1, 12, 4), 0.5)  # centre, width and height, in shares of the picture
        score_LBQT = torch.full((2, 1, 12, 32), -torch.inf)
        score_LBQT[..., 2] = torch.arange(12.0)
        return score_LBQT, box_LBQ4

    monkeypatch.setattr(module.detector.bbox_head, "forward", forward)
    (found,) = module.predict(batch_of(texts=("cat",)))
    assert found.sent_id == 10
    np.testing.assert_allclose(found.box_K4, np.tile([16.0, 12.0, 48.0, 36.0], (10, 1)))
    np.testing.assert_allclose(found.score_K, [1 / (1 + math.exp(-k)) for k in range(11, 1, -1)], rtol=1e-5)


def test_answers_fall_and_lie_inside():
    module = module_of(tiny_dino()).eval()
    located = module.predict(batch_of())
    assert [found.sent_id for found in located] == [10, 11]
    for found in located:
        assert found.box_K4.shape == (10, 4)
        assert found.box_K4.dtype == np.float32
        assert (np.diff(found.score_K) <= 0).all()
        assert (found.box_K4 >= 0).all()
        assert (found.box_K4 <= [64, 48, 64, 48]).all()
    without = replace(batch_of(), samples=[sample(image_id=0), sample(image_id=1)])
    np.testing.assert_array_equal(module.predict(without)[0].score_K, located[0].score_K)  # boxes are not read


def test_pixels_outside_of_the_picture_are_zero():
    spec = ImageSpec(32)
    one, whole = sample(image_id=0), sample(image_id=1, hw=(32, 32))
    found = normalised([one, whole], spec)
    assert (found[0, :, 24:] == 0).all()
    assert (found[0, :, :24] != 0).float().mean() > 0.9
    torch.testing.assert_close(found[1], spec.normalise(whole.image_CSS[None])[0])


def test_a_box_too_small_for_the_canvas():
    batch = ExpressionBatch([sample(), sample((2.0, 3.0, 10.0, 12.0), image_id=1)], ["cat", "dog"], [1, 2])
    loss, _ = module_of(tiny_dino()).loss(batch, step=0)
    assert torch.isfinite(loss)
    empty = ExpressionBatch([sample(), sample(image_id=1)], ["cat", "dog"], [1, 2])
    assert torch.isfinite(module_of(tiny_dino()).loss(empty, step=0)[0])


def test_rates():
    module = module_of(
        tiny_dino(language=LanguageConfig(max_tokens=32)), lr=1e-3, backbone_factor=0.1, language_factor=0.5
    )
    groups = {group["name"]: group for group in module.parameter_groups()}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {
            "backbone": 1e-4,
            "backbone, positions": 1e-4,
            "language_model": 5e-4,
            "language_model, positions": 5e-4,
            "rest": 1e-3,
        }
    )
    assert groups["backbone, positions"]["weight_decay"] == 0
    assert groups["backbone"]["weight_decay"] == 1e-4
    positions = module.detector.backbone.encoder.vit.pos_embed
    assert any(parameter is positions for parameter in groups["backbone, positions"]["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(list(module.parameters()))


def test_schedules_by_hand():
    steps = DinoTraining(epochs=5, milestones=(3,), gamma=0.1, warmup_steps=4, warmup_start=0.2, accumulate=1)
    factor = rate_schedule(steps, steps_per_epoch=10)
    # 0.2 + 0.8 * step / 4, then 1 until epoch 3 ends at step 30
    assert [factor(n) for n in (0, 1, 2, 4, 29, 30, 49)] == pytest.approx([0.2, 0.4, 0.6, 1, 1, 0.1, 0.1])
    cosine = replace(steps, schedule="cosine", warmup_steps=10)
    # 19 batches make 10 optimiser steps of two, the last of one
    assert rate_schedule(replace(steps, accumulate=2), steps_per_epoch=19)(30) == pytest.approx(0.1)
    factor = rate_schedule(cosine, steps_per_epoch=10)  # half way of the 40 steps behind the warm-up: 1/2
    assert [factor(n) for n in (0, 10, 30, 50)] == pytest.approx([0.2, 1, 0.5, 0])


def test_the_same_batch_after_a_trip():
    import pickle

    batch = batch_of()
    back = pickle.loads(pickle.dumps(batch))
    assert (back.texts, back.sent_ids, back.faults) == (batch.texts, batch.sent_ids, [])
    assert torch.equal(back.image_BCSS, batch.image_BCSS)
    assert torch.equal(back.samples[1].objects.box_N4, batch.samples[1].objects.box_N4)
    assert torch.equal(batch.to("cpu").image_BCSS, batch.image_BCSS)


def test_scores_that_are_no_numbers():
    module = module_of(tiny_dino())
    module.detector.level_embed.data.fill_(float("nan"))
    module.detector.memory_trans_fc.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"diverged in epoch 1 of 5: training\.lr=0\.0002 must be smaller"):
        module.loss(batch_of(), step=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 30}, r"dino\.embed_dim=30 must be a multiple of dino\.num_heads=4"),
        ({"fusion_dim": 6}, r"dino\.fusion_dim=6 must be a multiple of dino\.fusion_heads=4"),
        (
            {"max_per_img": 13},
            r"dino\.max_per_img=13 must be at least 10, for precision@10, and at most dino\.num_queries=12",
        ),
        ({"max_per_img": 5}, r"dino\.max_per_img=5 must be at least 10"),
        ({"encoder_layers": 0}, r"dino\.encoder_layers=0 must be at least 1"),
        ({"factors": ()}, r"dino\.factors=\[\] must be some of \[4\.0"),
        ({"factors": (0.25,)}, r"pyramid factors \[0\.25\]"),
        ({"fusion_dropout": 1.0}, r"dino\.fusion_dropout=1\.0 must be at least 0 and below 1"),
        ({"language": LanguageConfig(max_tokens=1000)}, r"dino\.language\.max_tokens=1000 must be 4 to 512"),
    ],
)
def test_settings_that_cannot_be_meant(options, message):
    with pytest.raises(UserError, match=message):
        tiny_dino(**options)


def test_more_queries_than_places():
    module = module_of(tiny_dino(num_queries=21))
    with pytest.raises(UserError, match=r"dino\.num_queries=21 is more than the 20 places"):
        module.loss(batch_of(), step=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"training\.lr=0\.0 must be above 0"),
        ({"backbone_factor": -1.0}, r"training\.backbone_factor=-1\.0 must not be negative"),
        ({"full_share": 2.0}, r"training\.full_share=2\.0 must be at least 0 and at most 1"),
    ],
)
def test_training_that_cannot_be_meant(options, message):
    with pytest.raises(UserError, match=message):
        DinoTraining(**options).check()


def test_recipes(tmp_path):
    small = load_recipe("grounding_dino_small")
    assert small.dino.num_queries <= 100
    assert small.dino.encoder_layers + small.dino.decoder_layers <= 6
    with pytest.raises(UserError, match=r"'no_such' is not there; give a \.yaml or one of .*mm_grounding_dino"):
        load_recipe("no_such")
    file = tmp_path / "own.yaml"
    file.write_text("dino:\n  num_querys: 4\n")
    with pytest.raises(UserError, match=r"own\.yaml: .*num_querys"):
        load_recipe(file)
    file.write_text("training:\n  lr: -1.0\n")
    with pytest.raises(UserError, match=r"own\.yaml: training\.lr=-1\.0 must be above 0"):
        load_recipe(file)


def test_training_and_prediction_read_the_same_text():
    """mmdet puts a full stop behind a prompt that ends in a blank, at prediction only."""
    module = module_of(tiny_dino())
    read = []
    module.detector.language_model.register_forward_pre_hook(lambda _, args: read.append(list(args[0])))
    module.loss(batch_of(), step=0)
    module.eval()
    module.predict(batch_of())
    training, prediction = ([text.strip() for text in texts] for texts in read)
    assert training == prediction
    assert all(text.endswith(".") and not text.endswith(". .") for text in training)


def test_as_many_tokens_as_queries_are_nothing_special():
    """mmcv's attention would take the queries' positions for the text's."""
    detector = tiny_dino()
    layer = detector.decoder.layers[0].cross_attn_text
    width = detector.embed_dims
    torch.manual_seed(0)
    query, position, text = torch.randn(1, 12, width), torch.randn(1, 12, width), torch.randn(1, 12, width)
    none = torch.zeros(1, 12, dtype=torch.bool)
    equal = layer(query=query, query_pos=position, key=text, value=text, key_padding_mask=none)
    longer = torch.cat([text, torch.randn(1, 3, width)], dim=1)
    hidden = torch.tensor([[False] * 12 + [True] * 3])
    padded = layer(query=query, query_pos=position, key=longer, value=longer, key_padding_mask=hidden)
    torch.testing.assert_close(equal, padded)
