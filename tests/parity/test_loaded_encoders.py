"""Loaded encoders against the libraries that their models are from, on tiny random weights: tokens, prefix, summary, texts."""

import json

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from test_exports import ENCODERS, write_export
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from evals.load import load_encoder
from pretrain.export import load_pretrained
from pretrain.export_formats import encoder_sizes, export_as

TEXTS = ["a red circle", "two blue squares", "a"]
OPEN_CLIP_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
OPEN_CLIP = {
    "tiny-vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "tiny-late-norm": {
        "image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8,
        "pool_type": "avg", "final_ln_after_pool": True,
    },
    "tiny-attn-pool": {
        "image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8,
        "attentional_pool": True, "attn_pooler_heads": 4,
    },
    "tiny-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None},
    "tiny-trunk": {"image_size": 224, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
}  # fmt: skip


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def randomise(model: nn.Module) -> nn.Module:
    """Norms, biases and layer scales too: at their initial values one that is left out would not show."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not name.startswith("logit"):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval().requires_grad_(False)


def pictures(size: int, width: int | None = None):
    return torch.randn(2, 3, size, width or size, generator=torch.Generator().manual_seed(2))


def check_grid(encoder, image):
    rows, columns = encoder.grid(*image.shape[-2:])
    assert rows * columns == encoder(image).tokens_BND.shape[1]
    assert encoder(image).tokens_BND.shape[2] == encoder.embed_dim
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


# timm

VITS = {
    "class token": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    ),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "attention pool": ("vit_base_patch16_siglip_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "mean and norm": ("beit3_base_patch16_224", {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}),
    "bare": ("aimv2_nano_patch4_32", {"img_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}),
}


@pytest.fixture(params=list(VITS))
def vit(request, tmp_path):
    """A loaded ViT, and the same as timm builds it."""
    name, options = VITS[request.param]
    plain = randomise(timm.create_model(name, num_classes=0, dynamic_img_size=True, **options))
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    listed = ",".join(f"{key}={value}" for key, value in options.items())
    return load_encoder(f"timm:{name}[{listed}]@{tmp_path / 'w.safetensors'}"), plain, request.param


def test_timm_vits(vit):
    encoder, plain, kind = vit
    size, patch = encoder.transform.spec.img_size, plain.patch_embed.patch_size[0]
    for image in (pictures(size), pictures(2 * size, size + patch)):  # its own size, and positions resampled
        tokens = plain.forward_features(image)
        features = encoder(image)
        assert torch.equal(features.all_tokens(), tokens)
        assert features.prefix_BPD.shape[1] == {"class token": 1, "registers": 5, "mean and norm": 1}.get(kind, 0)
        if kind == "bare":
            assert features.pooled_BE is None
        else:  # without a classifier, what timm's model returns
            assert torch.equal(features.pooled_BE, plain(image))
        check_grid(encoder, image)


def test_layers_of_timm_vits(vit):
    encoder, plain, _ = vit
    image = pictures(encoder.transform.spec.img_size)
    depth = encoder.num_layers
    assert depth == len(plain.blocks)
    last, first, again = encoder.forward_layers(image, [depth - 1, 0, -1])
    assert torch.equal(last.all_tokens(), encoder(image).all_tokens())
    assert torch.equal(again.tokens_BND, last.tokens_BND)
    plain.blocks = plain.blocks[:1]  # a model of one block ends behind the first
    assert torch.equal(first.all_tokens(), plain.forward_features(image))


def test_fixed_sizes_stay_when_the_patch_does_not_divide_them(tmp_path):
    """SigLIP so400m has patches of 14 at 384; timm's dynamic sizes would refuse its own."""
    encoder = load_encoder("random:timm:vit_so400m_patch14_siglip_384[img_size=34,embed_dim=48,depth=1,num_heads=3]")
    assert encoder.grid(34, 34) == (2, 2)
    assert encoder(pictures(34)).tokens_BND.shape == (2, 4, 48)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_other_models_of_timm(name):
    encoder = load_encoder(f"random:timm:{name}")
    image = pictures(224)
    with torch.no_grad():
        output = encoder.model.forward_features(image)
        pooled = encoder.model.forward_head(output, pre_logits=True)
    # convnext [B, D, H, W], swin [B, H, W, D], eva [B, 1 + N, D]
    rows = {"convnext_atto": lambda x: x.flatten(2).mT, "swin_tiny_patch4_window7_224": lambda x: x.flatten(1, 2)}
    features = encoder(image)
    assert torch.equal(features.all_tokens(), rows.get(name, lambda x: x)(output))
    assert torch.equal(features.pooled_BE, pooled)
    assert features.prefix_BPD.shape[1] == (name == "eva02_tiny_patch14_224")
    check_grid(encoder, image)


# open_clip


@pytest.fixture(scope="module", params=list(OPEN_CLIP))
def clip(request, tmp_path_factory):
    """A loaded open_clip model, the same as open_clip builds it, and the file of weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    name = request.param
    config = {"embed_dim": 24, "vision_cfg": OPEN_CLIP[name], "text_cfg": OPEN_CLIP_TEXT}
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    plain = randomise(open_clip.create_model(name))
    file = folder / "weights.safetensors"
    save_file(plain.state_dict(), file)
    return load_encoder(f"open_clip:{name}@{file}"), plain, file


def test_open_clip(clip):
    encoder, plain, _ = clip
    image = pictures(encoder.transform.spec.img_size)
    features = encoder(image)
    close(features.pooled_BE, plain.encode_image(image))
    check_grid(encoder, image)
    visual = plain.visual
    if hasattr(visual, "trunk"):
        close(features.tokens_BND, visual.trunk.forward_features(image).flatten(2).mT)
    elif hasattr(visual, "layer4"):
        map_BDHW = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image)))))
        close(features.tokens_BND, map_BDHW.flatten(2).mT)
    elif visual.attn_pool is None:
        visual.output_tokens = True
        close(features.tokens_BND, visual(image)[1])
        visual.output_tokens = False
    else:  # its tokens are the pooling's queries; the tower's last layer stands in front of it
        close(features.tokens_BND, visual.transformer(visual._embeds(image))[:, 1:])


def test_open_clip_texts(clip):
    encoder, plain, _ = clip
    ids = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    close(encoder.text.encode_text(TEXTS), plain.encode_text(ids))
    assert not any(name.startswith("text.") for name in encoder.vision_state())


def test_one_clip_through_three_libraries(tmp_path):
    """open_clip's weights read by timm, which converts them itself, and by transformers, renamed here."""
    vision = OPEN_CLIP["tiny-vit"]
    (tmp_path / "tiny-vit-3.json").write_text(
        json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": OPEN_CLIP_TEXT})
    )
    open_clip.add_model_config(tmp_path / "tiny-vit-3.json")
    plain = randomise(open_clip.create_model("tiny-vit-3"))
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    expected = load_encoder(f"open_clip:tiny-vit-3@{tmp_path / 'w.safetensors'}")(pictures(32))
    options = "img_size=32,patch_size=8,embed_dim=64,depth=2,num_heads=2"
    ours = load_encoder(f"timm:vit_base_patch32_clip_224[{options}]@{tmp_path / 'w.safetensors'}")(pictures(32))
    close(ours.all_tokens(), expected.all_tokens(), 1e-5)

    config = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=24, hidden_act="gelu",
    )  # fmt: skip
    model = transformers.CLIPVisionModelWithProjection(config)
    own, theirs = model.state_dict(), plain.visual.state_dict()
    prefix = next(name for name in own if name.endswith("class_embedding")).removesuffix("embeddings.class_embedding")
    outside = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        **{f"pre_layrnorm.{part}": f"ln_pre.{part}" for part in ("weight", "bias")},
        **{f"post_layernorm.{part}": f"ln_post.{part}" for part in ("weight", "bias")},
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    inside |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    state = {prefix + name: theirs[other] for name, other in outside.items()}
    for index in range(2):
        block, other = f"{prefix}encoder.layers.{index}.", f"transformer.resblocks.{index}."
        for part in ("weight", "bias"):
            state |= {f"{block}{a}.{part}": theirs[f"{other}{b}.{part}"] for a, b in inside.items()}
            qkv = theirs[f"{other}attn.in_proj_{part}"].chunk(3)
            state |= {f"{block}self_attn.{x}_proj.{part}": y for x, y in zip("qkv", qkv, strict=True)}
    state["visual_projection.weight"] = theirs["proj"].T.contiguous()
    model.load_state_dict(state, strict=True)
    model.save_pretrained(tmp_path / "hf")
    theirs = load_encoder(f"hf:{tmp_path / 'hf'}")(pictures(32))
    close(theirs.all_tokens(), expected.all_tokens(), 1e-5)
    close(theirs.pooled_BE, expected.pooled_BE, 1e-5)


# Hugging Face

_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIDES = {**_VISION, "image_size": 32, "patch_size": 8}
_TEXT = {
    **_VISION,
    "vocab_size": 12,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def hugging_face(kind: str):
    """A tiny model of a family, random."""
    t = transformers
    torch.manual_seed(0)
    models_by_kind = {
        "clip": lambda: t.CLIPModel(t.CLIPConfig(text_config=_TEXT, vision_config=_SIDES, projection_dim=24)),
        "clip vision": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**_SIDES)),
        "siglip": lambda: t.SiglipModel(t.SiglipConfig(text_config=_TEXT, vision_config=_SIDES)),
        "siglip vision": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**_SIDES)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**_SIDES, mlp_ratio=2)),
        "registers": lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**_SIDES, num_register_tokens=3)),
        "aimv2": lambda: t.Aimv2Model(t.Aimv2Config(text_config=_TEXT, vision_config=_SIDES, projection_dim=24)),
        "aimv2 vision": lambda: t.Aimv2VisionModel(t.Aimv2VisionConfig(**_SIDES, use_head=False)),
        "aimv2 native": lambda: t.Aimv2VisionModel(t.Aimv2VisionConfig(**_SIDES, use_head=True, is_native=True)),
    }
    return randomise(models_by_kind[kind]())


def write_tokenizer(folder) -> None:
    """A word-level tokenizer that closes texts with id 2 and pads with id 1."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "two", "red", "blue", "circle", "squares"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


KINDS = [
    "clip",
    "clip vision",
    "siglip",
    "siglip vision",
    "dinov2",
    "registers",
    "aimv2",
    "aimv2 vision",
    "aimv2 native",
]


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face(tmp_path, kind):
    model = hugging_face(kind)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}")
    assert encoder.text is None
    other = () if kind in ("aimv2", "aimv2 vision") else (pictures(48, 40),)
    for image in (pictures(32), *other):
        resampled = {"interpolate_pos_encoding": True} if image.shape[-1] != 32 and kind[0] in "cs" else {}
        vision = getattr(model, "vision_model", model)
        output = vision(image, **resampled)
        hidden, pooled = output.last_hidden_state, output.pooler_output
        if hasattr(model, "get_image_features"):
            pooled = model.get_image_features(image, **resampled).pooler_output
        if kind.startswith("clip"):
            hidden = vision.post_layernorm(hidden)
        features = encoder(image)
        close(features.all_tokens(), hidden)
        expected = {"clip": 1, "clip vision": 1, "dinov2": 1, "registers": 4}.get(kind, 0)
        assert features.prefix_BPD.shape[1] == expected
        assert (features.pooled_BE is None) == (kind == "aimv2 vision")
        if pooled is not None:
            close(features.pooled_BE, pooled)
        check_grid(encoder, image)


@pytest.mark.parametrize("kind", ["clip", "siglip", "aimv2"])
def test_hugging_face_texts(tmp_path, kind):
    model = hugging_face(kind)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}")
    # by hand: ids of TEXTS, closed by 2; SigLIP's are padded to all 8 positions, the others' to the longest with a mask
    rows = [[4, 6, 8, 2], [5, 7, 9, 2], [4, 2, 1, 1]]
    ids = torch.tensor([row + [1] * 4 for row in rows] if kind == "siglip" else rows)
    mask = {} if kind == "siglip" else {"attention_mask": (ids != 1).long()}
    expected = model.get_text_features(input_ids=ids, **mask).pooler_output
    close(encoder.text.encode_text(TEXTS), expected, 1e-5)
    close(encoder.text.encode_text(TEXTS[2:]), expected[2:], 1e-5)  # whatever it is padded with
    close(encoder(pictures(32)).pooled_BE, model.get_image_features(pictures(32)).pooler_output)


# this suite's own


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_one_run_in_all_layouts(tmp_path, kind):
    config = ENCODERS[kind]
    vit = write_export(config, tmp_path / "run" / "export")
    spec = config.image_spec()
    image = pictures(spec.img_size)
    run = load_encoder(str(tmp_path / "run"))
    assert torch.equal(run(image).tokens_BND, vit.forward_features(image))
    folders = {layout: export_as(tmp_path / "run", layout) for layout in ("timm", "hf", "aim")}
    architecture = json.loads((folders["timm"] / "config.json").read_text())["architecture"]
    sizes = encoder_sizes(load_pretrained(tmp_path / "run", encoder_only=True))
    listed = ",".join(f"{key}={value}" for key, value in sizes.items() if key != "mlp_hidden_dim")
    loaded = {
        "timm": load_encoder(f"timm:{architecture}@{folders['timm']}"),
        "hf": load_encoder(f"hf:{folders['hf']}"),
    }
    if kind == "published":  # the released layout names no model, and huge's hidden width is the name's
        loaded["aim"] = load_encoder(f"timm:{config.name}[{listed}]@{folders['aim']}")
    for name, encoder in loaded.items():
        close(encoder(image).tokens_BND, run(image).tokens_BND, 1e-5)
        assert encoder.transform == run.transform, name
        assert encoder.transform.spec == spec
        assert encoder.grid(spec.img_size, spec.img_size) == run.grid(spec.img_size, spec.img_size)
