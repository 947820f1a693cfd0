"""Pictures of an encoder's features: patches coloured by principal components, a probe's attention, nearest neighbours.

    python -m evals look [--encoder SPEC ...] [--dataset NAME] [--data PATH] [--probe FILE] [--num N] [--out DIR]

One page (PNG) for each encoder, all on the same pictures, and its numbers beside it (JSON). With no encoder named, those of
the last run and its random twin.

Shape letters: B pictures shown, T tokens, D width, M pictures of the gallery, E width of the summary.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from evals.default_run import load_or_train
from evals.encoder import TokenEncoder
from evals.features import default_device
from evals.look_album import DEFAULT_DATASET, Album, Gallery, device_of, encode_gallery, open_album
from evals.look_features import (
    Agreement,
    Attention,
    AttentionMaps,
    Neighbours,
    PatchColours,
    attention_maps,
    class_agreement,
    nearest,
    patch_colours,
    spread_over_classes,
)
from evals.look_page import Page, Tile, write_page
from pretrain.data.terminal import progress_bar, run_command
from pretrain.export import save_json
from pretrain.rng import draw_rng
from pretrain.types import UserError

_DEFAULT_RUN = "runs/latest"


@dataclass(frozen=True)
class LookConfig:
    """What is shown.

    Attributes:
        num: pictures shown, which are the queries too.
        k: neighbours of each.
        gallery: pictures among which neighbours are looked for, drawn at random.
        foreground: colour only what lies on the foreground's side of the first component.
        each_head: show the attention of each head, too.
        seed: of the drawing.
    """

    num: int = 6
    k: int = 5
    gallery: int = 500
    foreground: bool = False
    each_head: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for numbers that cannot be meant."""
        for option, value in (("num", self.num), ("neighbours", self.k), ("gallery", self.gallery)):
            if value < 1:
                raise UserError(f"--{option}={value} must be at least 1")
        needed = max(self.k + 1, self.num)
        if self.gallery < needed:
            raise UserError(
                f"--gallery={self.gallery} must be at least {needed} to show {self.num} pictures with {self.k} neighbours each"
            )


@dataclass(frozen=True)
class Look:
    """An encoder's features on an album.

    Attributes:
        gallery: all pictures that were encoded.
        shown_B: rows of the gallery that are shown.
        colours: of the shown pictures' patches.
        attention: of the probe on them; None without a probe.
        neighbours: of them in the gallery.
        agreement: of classes over the whole gallery; None without classes.
    """

    gallery: Gallery
    shown_B: np.ndarray
    colours: PatchColours
    attention: AttentionMaps | None
    neighbours: Neighbours
    agreement: Agreement | None


def load_attention(path: str | Path) -> Attention:
    """The attention of a fitted probe's head.

    This is the hook that `--probe FILE` goes through: whatever it returns is given class, register and patch tokens
    [B, T, D] of an encoder's last layer, in this order, and returns each head's weights on them, [B, H, T].

    Args:
        path: head.safetensors of `evals.probe.heads.save_head`.

    Raises:
        UserError: no head there, or one without attention (a linear probe). The returned function: tokens of another width.
    """
    from evals.probe.heads import load_head

    head = load_head(path)
    if not hasattr(head, "attention"):
        raise UserError(f"--probe={path}: a {type(head).__name__} has no attention; give an attentive probe's head")
    width = head.classifier.in_features

    def attention(tokens_BTD: Tensor) -> Tensor:
        if tokens_BTD.shape[-1] != width:
            raise UserError(
                f"--probe={path} was fitted on features {width} wide, this encoder's are {tokens_BTD.shape[-1]} wide: "
                "give the one --encoder that it was fitted on"
            )
        return head.attention(tokens_BTD.float().cpu())

    return attention


@torch.no_grad()
def look(
    encoder: TokenEncoder, album: Album, config: LookConfig, *, attention: Attention | None, progress: Progress
) -> Look:
    """All that a page shows.

    Raises:
        UserError: fewer readable pictures than neighbours, or a probe that does not fit.
    """
    drawn_M = draw_rng(config.seed, "look", 0).permutation(album.count)[: config.gallery]
    text = f"encoding {album.name} with {encoder.provenance.spec}"
    gallery = encode_gallery(encoder, album, index_M=np.sort(drawn_M), progress=progress, text=text)
    label_M = None if album.label_N is None else album.label_N[gallery.index_M]
    shown_B = spread_over_classes(label_M, num=config.num, count=len(gallery.index_M))
    neighbours = nearest(gallery.summary_ME, query_Q=shown_B, k=config.k)
    images = [album.load(int(index))[0] for index in gallery.index_M[shown_B]]
    size = encoder.transform.spec.img_size
    grid = encoder.grid(size, size)
    parts = [encoder(encoder.preprocess([image]).to(device_of(encoder))) for image in images]
    tokens_BND = torch.cat([part.tokens_BND for part in parts]).float().cpu()
    colours = patch_colours(tokens_BND, grid=grid, foreground=config.foreground)
    maps = None
    if attention is not None:
        maps = attention_maps(attention, torch.cat([part.all_tokens() for part in parts]).float().cpu(), grid=grid)
    agreement = None if label_M is None else class_agreement(gallery.summary_ME, label_M, k=config.k)
    return Look(gallery, shown_B, colours, maps, neighbours, agreement)


def _tile(encoder: TokenEncoder, album: Album, *, index: int, key: str, query: int | None = None) -> Tile:
    """A picture as the encoder sees it; `query`: index of the picture that it is a neighbour of."""
    pixels = encoder.transform(album.load(index)[0]).permute(1, 2, 0).numpy()
    if album.label_N is None:
        return Tile(pixels, Path(key).stem)
    same = None if query is None else bool(album.label_N[index] == album.label_N[query])
    return Tile(pixels, album.classes[int(album.label_N[index])], same)


def notes_of(found: Look) -> list[str]:
    """The numbers behind a page, as lines."""
    shares = ", ".join(f"{100 * share:.0f}" for share in found.colours.variance_3)
    notes = [f"Colours: first three principal components of all patches shown ({shares}% of their variance)"]
    if not found.colours.foreground_BRC.all():
        notes[0] += f"; {100 * found.colours.foreground_BRC.mean():.0f}% of the patches are taken for foreground"
    if found.attention is not None:
        share = 100 * float(found.attention.prefix_share_B.mean())
        where = f"; {share:.1f}% of it lies on class and register tokens" if share else ""
        notes.append(f"Attention of the probe: mean over heads{where}")
    near = f"Neighbours: cosine similarity of summaries in {len(found.gallery.index_M):,} pictures"
    if (agreement := found.agreement) is not None:
        near += (
            f"; of the {agreement.k} nearest to each of these, {100 * agreement.same:.1f}% have its class "
            f"(chance {100 * agreement.chance:.1f}%)"
        )
    if found.gallery.faults:
        near += f"; {len(found.gallery.faults)} unreadable pictures left out"
    return [*notes, near]


def make_page(encoder: TokenEncoder, album: Album, found: Look, *, each_head: bool = False) -> Page:
    """The page of :func:`look`'s findings."""
    origin, gallery = encoder.provenance, found.gallery
    trained = "random weights" if origin.objective == "random" else f"objective: {origin.objective}"
    shown, near = [], []
    for row, neighbours in zip(found.shown_B, found.neighbours.index_QK, strict=True):
        query = int(gallery.index_M[row])
        shown.append(_tile(encoder, album, index=query, key=gallery.keys[row]))
        near.append(
            [
                _tile(encoder, album, index=int(gallery.index_M[other]), key=gallery.keys[other], query=query)
                for other in neighbours
            ]
        )
    return Page(
        title=f"{origin.architecture}, {trained}",
        subtitle=f"{origin.spec}  |  {album.name}: {album.about}",
        shown=shown,
        colours=found.colours,
        neighbours=near,
        attention=found.attention,
        each_head=each_head,
        notes=notes_of(found),
    )


def numbers_of(encoder: TokenEncoder, album: Album, found: Look) -> dict[str, Any]:
    """A page's numbers, for its JSON."""
    keys = found.gallery.keys
    return {
        "encoder": asdict(encoder.provenance),
        "dataset": album.name,
        "about": album.about,
        "gallery": len(keys),
        "unreadable": [asdict(fault) for fault in found.gallery.faults],
        "variance": found.colours.variance_3.tolist(),
        "prefix_attention": None if found.attention is None else found.attention.prefix_share_B.tolist(),
        "agreement": None if found.agreement is None else asdict(found.agreement),
        "neighbours": {
            keys[row]: [[keys[other], round(float(cosine), 4)] for other, cosine in zip(others, cosines)]
            for row, others, cosines in zip(found.shown_B, found.neighbours.index_QK, found.neighbours.cosine_QK)
        },
    }


def page_name(spec: str, dataset: str) -> str:
    """A file name for a page, without its suffix."""
    return "_".join(re.sub(r"[^A-Za-z0-9_.-]+", "-", part).strip("-.") for part in (dataset, spec))


def fitted_head(encoder: TokenEncoder, dataset: str, *, evals: Path = Path("runs/evals")) -> Path | None:
    """The head of the latest attentive probe that was fitted on this encoder with this data set; None where there is none."""
    found = (evals / "attentive_probe" / dataset).glob(f"{encoder.fingerprint()}-*/head.safetensors")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def run(
    specs: Sequence[str], *, dataset: str | None, data: str | None, probe: Path | None, config: LookConfig, out: Path
) -> list[Path]:
    """Write a page for each encoder; returns where they lie."""
    config.check()
    pages = []
    for spec in specs:
        encoder = load_or_train(spec, seed=config.seed).to(default_device())
        album = open_album(dataset, data, img_size=encoder.transform.spec.img_size)
        head = probe or fitted_head(encoder, album.name)
        if config.each_head and head is None:
            raise UserError(
                f"--each-head shows a probe's attention, and none was fitted on {spec} with {album.name}: make eval-imagenet "
                "first, or give a head with --probe"
            )
        attention = None if head is None else load_attention(head)
        with progress_bar() as progress:
            found = look(encoder, album, config, attention=attention, progress=progress)
        path = out / f"{page_name(spec, album.name)}.png"
        pages.append(write_page(make_page(encoder, album, found, each_head=config.each_head), path))
        save_json(numbers_of(encoder, album, found), path.with_suffix(".json"))
        print(f"{spec} on {album.name} ({album.about})", *notes_of(found), sep="\n  ")
    return pages


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evals look", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--encoder",
        nargs="+",
        action="extend",
        metavar="SPEC",
        help="a run or export, timm:NAME[@FILE], open_clip:NAME[@FILE], hf:DIR, random:SPEC; "
        "the last run (trained first where there is none) and its random twin where not given",
    )
    parser.add_argument(
        "--dataset", help=f"name of a data set; {DEFAULT_DATASET} where neither this nor --data is given"
    )
    parser.add_argument("--data", metavar="PATH", help="a folder of pictures; with --dataset, where that data set lies")
    parser.add_argument(
        "--probe",
        type=Path,
        metavar="FILE",
        help="head.safetensors of an attentive probe; the one that make eval-imagenet fitted, if any, where not given",
    )
    parser.add_argument("--num", type=int, default=6, help="pictures shown")
    parser.add_argument("--neighbours", type=int, default=5, help="nearest others of each")
    parser.add_argument("--gallery", type=int, default=500, help="pictures among which they are looked for")
    parser.add_argument("--foreground", action="store_true", help="colour one side of the first component only")
    parser.add_argument("--each-head", action="store_true", help="show the attention of each head, too")
    parser.add_argument("--seed", type=int, default=0, help="of the gallery and of random weights")
    parser.add_argument("--out", type=Path, default=Path("runs/look"), metavar="DIR", help="folder for the pages")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    options = parse(args)
    config = LookConfig(
        num=options.num,
        k=options.neighbours,
        gallery=options.gallery,
        foreground=options.foreground,
        each_head=options.each_head,
        seed=options.seed,
    )

    def command() -> None:
        pages = run(
            options.encoder or [_DEFAULT_RUN, f"random:{_DEFAULT_RUN}"],
            dataset=options.dataset,
            data=options.data,
            probe=options.probe,
            config=config,
            out=options.out,
        )
        print("written: " + ", ".join(map(str, pages)))

    return run_command(command)
