"""Encoders by name: what errors say, strictness, untrained weights, where they come from, layers of a ViT."""

import json
import re

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from evals.encoder import card
from evals.encoders.objectives import named_objective
from evals.encoders.specs import parse
from evals.load import NoRunError, load_encoder
from pretrain.export import save_json, save_tensors
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.types import UserError

TINY = EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16)
VIT = "vit_tiny_patch16_224[img_size=32,embed_dim=48,depth=2,num_heads=3]"
HF = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
SMALL_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def offline(monkeypatch):
    """The hub answers at once that it cannot be reached, instead of being tried for a minute."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def message(spec: str) -> str:
    """The one-line error that loading ends in."""
    with pytest.raises(UserError) as caught:
        load_encoder(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write_run(run, *, image_weight=0.4, text_weight=1.0, config=TINY):
    """A run's export with random weights, and what its encoder.json tells."""
    torch.manual_seed(0)
    spec = config.image_spec()
    fields = {name: value for name, value in vars(config).items() if value is not None}
    image = {"img_size": spec.img_size, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    info = {"samples_seen": 1234, "steps": 10, "seed": 3}
    export = run / "export"
    save_json({"format": 1, "encoder": fields, "image": image, "info": info}, export / "encoder.json")
    save_tensors(build_encoder(config).state_dict(), export / "encoder.safetensors")
    objective = {"image_weight": image_weight, "text_weight": text_weight}
    save_json({"format": 1, "objective": objective}, export / "objective.json")
    return run


def write_timm(folder):
    """A file of weights of the tiny ViT, with a classifier of 5 classes."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    save_file(vit.state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


def write_open_clip(folder):
    (folder / "small-clip.json").write_text(json.dumps(SMALL_CLIP))
    open_clip.add_model_config(folder / "small-clip.json")
    save_file(open_clip.create_model("small-clip").state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


def write_hf(folder):
    CLIPVisionModel(CLIPVisionConfig(**HF, patch_size=8)).save_pretrained(folder)
    return folder / "model.safetensors"


def spec_and_file(kind, folder):
    """A spec that loads, and the file that its weights are in."""
    writers = {"timm": write_timm, "open_clip": write_open_clip, "hf": write_hf}
    file = writers[kind](folder)
    return {"timm": f"timm:{VIT}@{file}", "open_clip": f"open_clip:small-clip@{file}", "hf": f"hf:{folder}"}[kind], file


# names


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:vit_smal_patch16_224", "no timm model; near: vit_small_patch16_224"),
        ("random:timm:aimv2_nano_patch4_23", "near: aimv2_nano_patch4_32"),
        ("timm:vit_small_patch16_224.nope", "'nope' is no tag of vit_small_patch16_224; it has augreg_in1k"),
        ("open_clip:vit-b-33@openai", "no open_clip model; near: ViT-B-32"),
        ("open_clip:ViT-B-32-quickgelu@opnai", "neither a file nor a tag of ViT-B-32-quickgelu (openai"),
        ("open_clip:ViT-B-32@openai", "trained with QuickGELU: name ViT-B-32-quickgelu"),
        ("open_clip:ViT-B-32", "give open_clip:ViT-B-32@TAG (openai"),
        ("tim:vit_small_patch16_224", "'tim' is no known prefix; near: timm; give a run or an export, timm:NAME"),
        ("vit_small_patch16_224", "for the timm model say timm:vit_small_patch16_224"),
        (
            "timm:vit_tiny_patch16_224[width=3]",
            "'width' is no option; give img_size, patch_size, embed_dim, depth, num_heads",
        ),
        ("timm:vit_tiny_patch16_224[depth=0]", "depth=0 must be a whole number of at least 1"),
        ("timm:vit_tiny_patch16_224[depth=2", "the form is NAME"),
        ("timm:vit_tiny_patch16_224[depth=2]", "depth makes another model than the released weights"),
        ("random:timm:vit_tiny_patch16_224[embed_dim=50]", "cannot be built"),
        ("random:timm:resnet18[embed_dim=50]", "cannot be built"),
        (
            "timm:aimv2_nano_patch4_32",
            "timm has no weights for aimv2_nano_patch4_32; give timm:aimv2_nano_patch4_32@FILE",
        ),
        ("timm:vit_tiny_patch16_224@/nowhere/w.bin", "no such file or folder"),
        ("hf:/nowhere", "no folder with a config.json"),
    ],
)
def test_wrong_names(spec, words):
    assert words in message(spec)


def test_the_hub_cannot_be_reached(offline):
    text = message("timm:vit_tiny_patch16_224.augreg_in21k")
    assert "hub that has its weights cannot be reached" in text
    assert "timm:vit_tiny_patch16_224.augreg_in21k@FILE" in text
    assert "random:timm:vit_tiny_patch16_224.augreg_in21k" in text
    text = message("open_clip:ViT-S-32-alt@nope")
    assert "nor a tag" in text
    text = message("open_clip:ViT-B-32@laion2b_s34b_b79k")
    assert "cannot be reached" in text
    assert "random:open_clip:ViT-B-32" in text


def test_a_text_tower_whose_tokenizer_is_on_the_hub(offline, tmp_path):
    config = SMALL_CLIP | {"text_cfg": SMALL_CLIP["text_cfg"] | {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}
    (tmp_path / "hub-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "hub-words.json")
    encoder = load_encoder("random:open_clip:hub-words")  # pictures need no tokenizer
    assert encoder(torch.zeros(1, 3, 16, 16)).pooled_BE.shape == (1, 24)
    with pytest.raises(UserError, match=r"hub-words needs a tokenizer from the hub"):
        encoder.text.encode_text(["a"])


def test_runs_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec in ("runs/latest", "random:runs/latest"):
        with pytest.raises(NoRunError, match=r"no run to evaluate yet.*make pretrain"):
            load_encoder(spec)
    write_run(tmp_path / "runs" / "nano-12")
    assert "near: runs/nano-12" in message("runs/nano-13")
    assert "near: runs/nano-12" in message("nano-12")
    (tmp_path / "runs" / "empty").mkdir()
    assert "neither a run nor an export" in message("runs/empty")
    (tmp_path / "runs" / "latest").symlink_to("gone")
    with pytest.raises(NoRunError):
        load_encoder("runs/latest")


def test_other_families_of_hugging_face(tmp_path):
    save_json({"model_type": "bert"}, tmp_path / "config.json")
    assert re.search(r"'bert' is of none of the families CLIP, SigLIP, DINOv2 and AIMv2", message(f"hf:{tmp_path}"))


# strictness


@pytest.mark.parametrize("kind", ["timm", "open_clip", "hf"])
def test_missing_and_unexpected_tensors(kind, tmp_path):
    spec, file = spec_and_file(kind, tmp_path)
    load_encoder(spec)
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "norm" in name or "ln_" in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    assert name.rpartition(".")[0].rpartition(".")[2] in message(spec)
    save_file(tensors | {"strange.weight": torch.ones(3)}, file)
    assert "strange.weight" in message(spec)
    save_file(tensors | {name: torch.ones(7)}, file)
    assert name.rpartition(".")[0].rpartition(".")[2] in message(spec)


@pytest.mark.parametrize("kind", ["timm", "open_clip", "hf"])
def test_a_pickle_is_refused(kind, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    spec, file = spec_and_file(kind, tmp_path)
    tensors = load_file(file)
    file.unlink()
    other = tmp_path / "pytorch_model.bin"
    torch.save(tensors, other)
    spec = spec.replace(str(file), str(other))
    load_encoder(spec)  # a plain one is read
    torch.save(tensors | {"evil": Evil()}, other)
    assert "is refused" in message(spec)
    assert not (tmp_path / "ran").exists()


def test_the_classifier_is_left_out_and_named(tmp_path, caplog):
    file = write_timm(tmp_path)
    encoder = load_encoder(f"timm:{VIT}@{file}")
    assert "head.weight, head.bias" in caplog.text
    assert not any("head" in name for name in encoder.state_dict())


def test_weights_for_another_size(tmp_path):
    file = write_timm(tmp_path)
    larger = VIT.replace("img_size=32", "img_size=64")
    encoder = load_encoder(f"timm:{larger}@{file}")  # asked for: resampled
    assert encoder.grid(64, 64) == (4, 4)
    assert encoder.transform.spec.img_size == 64
    text = message(f"timm:{VIT.replace('img_size=32,', '')}@{file}")
    assert "pos_embed" in text
    assert "has 5 positions, vit_tiny_patch16_224 has 197" in text  # a class token and 2 x 2, 14 x 14 patches


def test_other_heads_than_the_folder_says(tmp_path):
    write_timm(tmp_path)
    save_json({"architecture": "another_vit", "model_args": {"num_heads": 6}}, tmp_path / "config.json")
    assert "the weights have 6 heads, vit_tiny_patch16_224 has 3; give [num_heads=6]" in message(
        f"timm:{VIT}@{tmp_path}"
    )


def test_an_export_is_named_by_its_path(tmp_path):
    run = write_run(tmp_path / "run")
    assert "give its path alone" in message(f"timm:aimv2_nano_patch4_32@{run / 'export'}")


# untrained weights


@pytest.mark.parametrize("kind", ["timm", "open_clip", "hf", "run"])
def test_random_weights(kind, tmp_path):
    spec = str(write_run(tmp_path / "run")) if kind == "run" else spec_and_file(kind, tmp_path)[0]
    trained = load_encoder(spec)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = load_encoder(f"random:{spec}", seed=5)
    assert torch.equal(torch.rand(3), expected)  # no draw of the process was used up
    assert load_encoder(f"random:{spec}", seed=5).fingerprint() == first.fingerprint()
    assert load_encoder(f"random:{spec}", seed=6).fingerprint() != first.fingerprint()
    assert first.fingerprint() != trained.fingerprint() == load_encoder(spec, seed=9).fingerprint()
    about = first.provenance
    assert (about.objective, about.run, about.samples_seen, about.training_flops) == ("random", "", 0, 0.0)
    assert first.provenance.architecture == trained.provenance.architecture
    assert first.transform == trained.transform
    assert card(first) == card(trained)
    shapes = {name: tensor.shape for name, tensor in first.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in trained.state_dict().items()}


def test_random_weights_of_a_run_are_the_published_ones(tmp_path):
    """Xavier-uniform: bounded by sqrt(6 / (fan in + fan out)) = 0.306 for 32 -> 32, and near the bound somewhere."""
    encoder = load_encoder(f"random:{write_run(tmp_path / 'run')}")
    weight = encoder.vit.blocks[0].attn.proj.weight
    bound = (6 / 64) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound


def test_heads_are_part_of_the_fingerprint():
    """They change features and no tensor."""
    a, b = (
        load_encoder(f"random:timm:vit_tiny_patch16_224[img_size=32,depth=1,num_heads={heads}]") for heads in (3, 6)
    )
    assert torch.equal(a.vit.blocks[0].attn.qkv.weight, b.vit.blocks[0].attn.qkv.weight)
    assert a.fingerprint() != b.fingerprint()


# provenance


@pytest.mark.parametrize(
    ("image_weight", "text_weight", "objective"), [(0.4, 1.0, "aimv2"), (0.4, 0.0, "aimv1"), (0.0, 1.0, "captioner")]
)
def test_provenance_of_a_run(tmp_path, image_weight, text_weight, objective):
    run = write_run(tmp_path / "run", image_weight=image_weight, text_weight=text_weight)
    for path in (run, run / "export"):
        provenance = load_encoder(str(path)).provenance
        assert (provenance.objective, provenance.samples_seen) == (objective, 1234)
        assert (provenance.spec, provenance.run) == (str(path), str(path))
    (run / "export" / "objective.json").unlink()
    assert load_encoder(str(run)).provenance.objective == "unknown"


def test_provenance_of_files(tmp_path):
    file = write_timm(tmp_path)
    # a tag says what the weights are; the name of an architecture does not
    assert load_encoder(f"timm:{VIT}@{file}").provenance.objective == "unknown"
    assert load_encoder(f"timm:{VIT}@{file}").provenance.run == str(file)
    write_hf(tmp_path / "hf")
    assert load_encoder(f"hf:{tmp_path / 'hf'}").provenance.objective == "clip"


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("vit_base_patch14_reg4_dinov2.lvd142m", "dinov2"),
        ("aimv2_large_patch14_224.apple_pt", "aimv2"),
        ("vit_base_patch16_siglip_224.webli", "siglip"),
        ("vit_base_patch16_clip_224.openai", "clip"),
        ("vit_base_patch16_clip_224.openai_ft_in1k", "clip, fine-tuned"),
        ("vit_base_patch16_224.mae", "mae"),
        ("vit_base_patch16_224.dino", "dino"),
        ("ViT-B-16-SigLIP", "siglip"),
        ("resnet50.a1_in1k", "unknown"),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", "unknown"),
    ],
)
def test_objectives_that_names_say(name, objective):
    assert named_objective(name) == objective


def test_specs_are_taken_apart():
    found = parse("NAME.tag[depth=2, img_size=64]@/a@b/c", whole="", options=("img_size", "depth"))
    assert (found.name, found.options, found.source) == ("NAME.tag", {"depth": 2, "img_size": 64}, "/a@b/c")
    assert found.architecture() == "NAME.tag[depth=2,img_size=64]"


# blocks


def test_layers_of_parameters():
    """One of every kind by hand; depth 2: 0 in front, 1 and 2 the blocks, 3 behind."""
    encoder = load_encoder("random:timm:vit_small_patch14_reg4_dinov2[img_size=28,embed_dim=48,depth=2,num_heads=3]")
    layers = {name: encoder.layer_of(name) for name, _ in encoder.named_parameters()}
    by_hand = {
        "vit.cls_token": 0, "vit.reg_token": 0, "vit.pos_embed": 0, "vit.patch_embed.proj.bias": 0,
        "vit.blocks.0.norm1.weight": 1, "vit.blocks.1.mlp.fc2.bias": 2, "vit.norm.weight": 3,
    }  # fmt: skip
    assert by_hand.items() <= layers.items()
    assert set(layers.values()) == {0, 1, 2, 3}
    pooling = load_encoder("random:timm:vit_base_patch16_siglip_224[img_size=32,embed_dim=48,depth=1,num_heads=3]")
    assert pooling.layer_of("vit.attn_pool.latent") == 2


def test_sizes_that_a_vit_cannot_take():
    encoder = load_encoder(f"random:timm:{VIT}")
    for call in (
        encoder,
        lambda image: encoder.forward_layers(image, [0]),
        lambda image: encoder.grid(*image.shape[-2:]),
    ):
        with pytest.raises(UserError, match=r"multiples of its patch, 16 pixels; pictures are 40 x 32"):
            call(torch.zeros(1, 3, 40, 32))
    with pytest.raises(UserError, match=r"layers: 2 is none of the 2 blocks"):
        encoder.forward_layers(torch.zeros(1, 3, 32, 32), [0, 2])


def test_sizes_that_others_cannot_take(tmp_path):
    swin = load_encoder("random:timm:swin_tiny_patch4_window7_224[embed_dim=24]")
    with pytest.raises(UserError, match=r"cannot take pictures of 256 x 256, its own are 224 x 224"):
        swin(torch.zeros(1, 3, 256, 256))
    write_open_clip(tmp_path)
    with pytest.raises(UserError, match=r"small-clip cannot take pictures of 24 x 24"):
        load_encoder("random:open_clip:small-clip")(torch.zeros(1, 3, 24, 24))
    encoder = load_encoder("random:open_clip:small-clip[img_size=24]")
    assert encoder(torch.zeros(1, 3, 24, 24)).tokens_BND.shape == (1, 9, 64)


def test_summary_falls_back_to_the_mean():
    encoder = load_encoder("random:timm:aimv2_nano_patch4_32[img_size=16,embed_dim=32,depth=1,num_heads=2]")
    features = encoder(torch.randn(2, 3, 16, 16))
    np.testing.assert_array_equal(features.summary(), features.tokens_BND.mean(1))
