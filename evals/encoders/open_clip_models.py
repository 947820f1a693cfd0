"""`open_clip:NAME@TAG`, `open_clip:NAME@FILE`: the visual tower's patch tokens, its vector in the shared space, its text tower.

Shape letters: B batch, C channels, H/W pixels, P class and register tokens, N patches, D width, E width of the shared space,
T texts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from evals.encoder import Features, Provenance, TextTower
from evals.encoders.feature_maps import Grid, ProbedEncoder, split_output
from evals.encoders.objectives import named_objective
from evals.encoders.preprocessing import from_open_clip
from evals.encoders.specs import ModelSpec, listed, near, one_line, parse, read_object
from evals.transforms import ImageTransform
from pretrain.models.weights import find_weights, read_tensors
from pretrain.types import UserError

OPTIONS = ("img_size",)
_PICTURES = ("mean", "std", "interpolation", "resize_mode")


class OpenClipText(TextTower):
    """The text side of an open_clip model; its tokenizer is made on first use, for some need the hub.

    Args:
        model: the model; its visual tower is taken out of it.
        tokenizer: what `open_clip.get_tokenizer` takes: the model's name, or local-dir:FOLDER.
    """

    def __init__(self, model: nn.Module, *, tokenizer: str) -> None:
        super().__init__()
        self.model, self._name, self._tokenizer = model, tokenizer, None

    @property
    def tokenizer(self) -> Any:
        """Texts to ids [T, L].

        Raises:
            UserError: it has to come from the hub, which cannot be reached.
        """
        if self._tokenizer is None:
            try:
                self._tokenizer = open_clip.get_tokenizer(self._name)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"the text tower of {self._name} needs a tokenizer from the hub, which cannot be reached "
                    f"({type(error).__name__}); open_clip brings CLIP's own only"
                ) from error
        return self._tokenizer

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        ids_TL = self.tokenizer(list(texts)).to(next(self.parameters()).device)
        return self.model.encode_text(ids_TL, normalize=False)


class OpenClipEncoder(ProbedEncoder):
    """The visual tower of an open_clip model.

    Its own ViTs give the tokens that their `output_tokens` gives (behind the last norm, unless that stands behind the
    pooling); ResNets the map in front of the pooling; timm's models their `forward_features`.
    """

    def __init__(
        self, visual: nn.Module, *, text: TextTower | None, transform: ImageTransform, provenance: Provenance
    ) -> None:
        super().__init__()
        self.visual, self.text, self.transform, self.provenance = visual, text, transform, provenance
        self.eval().requires_grad_(False)
        if not isinstance(visual, VisionTransformer | ModifiedResNet | TimmModel):
            raise UserError(f"encoder {provenance.spec!r}: no way is known to the tokens of a {type(visual).__name__}")
        self._probe_native()

    def _encode(self, image_BCHW: Tensor) -> tuple[Features, Grid]:
        height, width = image_BCHW.shape[-2:]
        if isinstance(self.visual, TimmModel):
            output = self.visual.trunk.forward_features(image_BCHW)
            tokens_BND, prefix_BPD, grid = split_output(self.visual.trunk, output, height=height, width=width)
            return Features(tokens_BND, prefix_BPD, self.visual.head(self.visual.trunk.forward_head(output))), grid
        if isinstance(self.visual, ModifiedResNet):
            output = self.visual.forward_intermediates(image_BCHW, indices=1)
            map_BDHW = output["image_intermediates"][-1]
            tokens_BND = map_BDHW.flatten(2).transpose(1, 2)
            return Features(tokens_BND, tokens_BND[:, :0], output["image_features"]), tuple(map_BDHW.shape[-2:])
        output = self.visual.forward_intermediates(
            image_BCHW,
            indices=1,
            normalize_intermediates=self.visual.attn_pool is None and not self.visual.final_ln_after_pool,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        rows, columns = self.visual.patch_size
        prefix_BPD = output["image_intermediates_prefix"][-1]
        features = Features(output["image_intermediates"][-1], prefix_BPD, output["image_features"])
        return features, (height // rows, width // columns)


def load_open_clip(text: str, *, whole: str, untrained: bool) -> OpenClipEncoder:
    """The encoder behind `open_clip:`.

    Args:
        text: NAME@TAG of `open_clip.list_pretrained_tags_by_model`, or NAME@FILE, a file of weights or a folder with one;
            NAME alone for untrained weights. `[img_size=N]` behind the name resamples a ViT's positions. Statistics are the
            tag's; of a folder's open_clip_config.json; else those that all tags of the name share; else OpenAI's.
        whole: the spec, for messages.
        untrained: leave the weights as they are drawn.

    Raises:
        UserError: an unknown name or tag, no way to the weights, tensors missing, left over or of another shape.
    """
    asked = parse(text, whole=whole, options=OPTIONS)
    if asked.name not in open_clip.list_models():
        raise UserError(
            f"encoder {whole!r}: {asked.name!r} is no open_clip model{near(asked.name, open_clip.list_models())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(asked.name)
    tag = asked.source if asked.source in tags else None
    if asked.source is None and not untrained:
        raise UserError(
            f"encoder {whole!r} says no weights: give open_clip:{asked.name}@TAG ({listed(tags)}), "
            f"open_clip:{asked.name}@FILE, or random:open_clip:{asked.name}"
        )
    file = None
    if asked.source is not None and tag is None:
        if not Path(asked.source).exists():
            raise UserError(
                f"encoder {whole!r}: {asked.source!r} is neither a file nor a tag of {asked.name} ({listed(tags)})"
            )
        file = find_weights(asked.source)
    about = read_object(file.parent / "open_clip_config.json") if file is not None else {}
    _check_gelu(asked, tag, about)
    model = _create(asked, _preprocess(asked.name, tag, tags, about), tag=None if untrained else tag)
    if file is not None and not untrained:
        _fill(model, asked, file)
    transform = from_open_clip(model.visual.preprocess_cfg, where=f"encoder {whole!r}")
    tokenizer = f"local-dir:{file.parent}" if about and (file.parent / "tokenizer.json").is_file() else asked.name
    visual = model.visual
    del model.visual
    provenance = Provenance(
        whole,
        asked.architecture(),
        "random" if untrained else _objective(asked.name, file),
        run="" if untrained or file is None else str(file),
    )
    return OpenClipEncoder(
        visual, text=OpenClipText(model, tokenizer=tokenizer), transform=transform, provenance=provenance
    )


def _objective(name: str, file: Path | None) -> str:
    """By name where the weights are released ones; a file could hold anything."""
    if file is not None:
        return "unknown"
    named = named_objective(name)
    return "clip" if named == "unknown" else named  # the others of open_clip's are CLIP's


def _preprocess(name: str, tag: str | None, tags: Sequence[str], about: Mapping[str, Any]) -> dict[str, Any]:
    """What is known about the pictures, for open_clip's own defaults to fill up."""
    if isinstance(about.get("preprocess_cfg"), Mapping):
        return {key: value for key, value in about["preprocess_cfg"].items() if key in _PICTURES}
    configs = [open_clip.get_pretrained_cfg(name, each) for each in ([tag] if tag else tags)]
    found = [{key: config[key] for key in _PICTURES if key in config} for config in configs]
    return found[0] if found and all(each == found[0] for each in found) else {}


def _check_gelu(asked: ModelSpec, tag: str | None, about: Mapping[str, Any]) -> None:
    """UserError where weights were trained with the other GELU: no tensor shows it."""
    own = open_clip.get_model_config(asked.name).get("quick_gelu", False)
    theirs = own
    if tag is not None:
        theirs = open_clip.get_pretrained_cfg(asked.name, tag).get("quick_gelu", False)
    elif isinstance(about.get("model_cfg"), Mapping):
        theirs = about["model_cfg"].get("quick_gelu", False)
    if own != theirs:
        name = asked.name.removesuffix("-quickgelu") + ("-quickgelu" if theirs else "")
        raise UserError(
            f"encoder {asked.whole!r}: its weights were trained with {'Quick' if theirs else ''}GELU: name {name}"
        )


def _create(asked: ModelSpec, preprocess: dict[str, Any], *, tag: str | None) -> nn.Module:
    try:
        return open_clip.create_model(
            asked.name,
            pretrained=tag,
            force_image_size=asked.options.get("img_size"),
            force_preprocess_cfg=preprocess,
            pretrained_text=False,
            require_pretrained=tag is not None,
        )
    except OSError as error:  # some text towers are described on the hub only
        raise UserError(
            f"encoder {asked.whole!r}: its text tower is described on the hub, which cannot be reached "
            f"({type(error).__name__})"
        ) from error
    except RuntimeError as error:
        if tag is not None and "download" in str(error):
            raise UserError(
                f"encoder {asked.whole!r}: the hub that has its weights cannot be reached; give "
                f"open_clip:{asked.name}@FILE with a file of weights, or random:open_clip:{asked.name}"
            ) from error
        raise UserError(f"encoder {asked.whole!r} cannot be built: {one_line(error)}") from error


def _fill(model: nn.Module, asked: ModelSpec, file: Path) -> None:
    """Load a file's tensors strictly, in the layouts that open_clip itself reads."""
    tensors = read_tensors(file)
    if all(name.startswith("module.") for name in tensors):  # as distributed training saves it
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    tensors = convert_state_dict(model, tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    tensors.pop("text.transformer.embeddings.position_ids", None)  # a buffer of older transformers
    for name in ("logit_scale", "logit_bias"):  # as numbers or as vectors of one
        own = getattr(model, name, None)
        if name in tensors and isinstance(own, Tensor):
            tensors[name] = tensors[name].reshape(own.shape)
    if "img_size" in asked.options:
        resize_pos_embed(tensors, model)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"encoder {asked.whole!r}: {file} does not fit {asked.name}: {one_line(error)}") from error
