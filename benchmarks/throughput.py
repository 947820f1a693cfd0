"""The training step's speed, against the machine's matrix products and against a dense step.

    python -m benchmarks.throughput [--sizes nano tiny small-112] [--precisions fp32 bf16] [--rounds 5] [--compile]

Three things are timed in turn, round by round, so that a noisy machine disturbs all alike: the best square matrix product,
the step, and the dense step (captions padded to 77, text head on all 77 positions, pixel head on all image positions: what
a straightforward implementation does). The share is the step's FLOP/s over the matrix product's, both at their best round.

Shape letters: B batch, L text, N patches, D width, V vocabulary, P patch pixels.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.output import write_result
from pretrain.flops import model_flops, model_size
from pretrain.models.attention import choose_fused_attention
from pretrain.models.compiling import compile_blocks
from pretrain.models.decoder import Decoder, DecoderConfig
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.aimv2 import AIMv2Config, AIMv2Objective
from pretrain.objectives.losses import dense_vocabulary_loss_sum, normalise_patches, patchify, vocabulary_loss_sum
from pretrain.optim import OptimConfig, build_optimizer
from pretrain.types import CONTEXT_LENGTH, ImageTextBatch, LossTerm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Sides of the square matrix products; the fastest counts.
GEMM_SIDES = (1024, 2048, 3072)
#: Captions are this many tokens long, uniformly.
CAPTION_TOKENS = (6, 30)


@dataclass(frozen=True)
class Size:
    """A step to time: an encoder (its name alone, where it is as registered), a decoder, a vocabulary, a batch."""

    encoder: str | EncoderConfig
    decoder: DecoderConfig
    vocab_size: int
    batch_size: int = 16

    @property
    def encoder_config(self) -> EncoderConfig:
        return EncoderConfig(self.encoder) if isinstance(self.encoder, str) else self.encoder


SIZES = {
    "nano": Size("aimv2_nano_patch4_32", DecoderConfig(embed_dim=128, depth=2, num_heads=2), 512),
    "tiny": Size("aimv2_tiny_patch14_112", DecoderConfig(embed_dim=192, depth=4, num_heads=3), 4096),
    "small-112": Size("aimv2_small_patch14_112", DecoderConfig(embed_dim=256, depth=4, num_heads=4), 32_000),
}


class DenseObjective(AIMv2Objective):
    """The same loss the straightforward way: heads on every position, what is not wanted is masked afterwards."""

    def _text_term(self, hidden_BLD: Tensor, batch: ImageTextBatch) -> LossTerm:
        logits_BLV = self.decoder.text_head(hidden_BLD).float()
        target_BL = batch.text_BL.masked_fill(~batch.text_valid_BL, -100)
        total = F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten(), ignore_index=-100, reduction="sum")
        return LossTerm(total, batch.text_valid_BL.sum(), self.config.text_weight)

    def _pixel_term(self, hidden_BND: Tensor, image_BCHW: Tensor, prefix_len_B: Tensor) -> LossTerm:
        prediction_BNP = self.decoder.pixel_head(hidden_BND)[:, :-1].float()
        target_BNP = normalise_patches(patchify(image_BCHW, patch_size=self.patch_size))[:, 1:]
        wanted_BN = torch.arange(1, self.num_patches)[None] >= prefix_len_B[:, None]
        error_BN = (prediction_BNP - target_BNP).square().mean(-1)
        return LossTerm((error_BN * wanted_BN).sum(), wanted_BN.sum(), self.config.image_weight)


def make_batch(size: Size, img_size: int, *, padded_to: int | None = None) -> ImageTextBatch:
    """Random pictures, captions of 6-30 tokens."""
    generator = torch.Generator().manual_seed(0)
    low, high = CAPTION_TOKENS
    lengths_B = torch.randint(low, high + 1, (size.batch_size,), generator=generator)
    width = padded_to or -(-int(lengths_B.max()) // 8) * 8
    return ImageTextBatch(
        image_BCHW=torch.randn(size.batch_size, 3, img_size, img_size, generator=generator),
        text_BL=torch.randint(0, size.vocab_size, (size.batch_size, width), generator=generator),
        text_valid_BL=torch.arange(width)[None] < lengths_B[:, None],
        position_B=torch.arange(size.batch_size),
        seed=0,
        keys=[""] * size.batch_size,
        captions=[""] * size.batch_size,
    )


def step_flops(encoder: nn.Module, decoder: Decoder, batch: ImageTextBatch, *, num_predicted: int) -> int:
    """Matrix-product FLOPs of forward and backward that the loss needs; what counts is in `pretrain.flops`.

    Backward is twice forward, but for the patchifier, which passes no gradient to pixels. Attention in the decoder counts
    the causal half. Norms, activations, softmax and the optimiser are not counted.
    """
    flops = model_flops(
        model_size(encoder, decoder),
        samples=len(batch),
        text_len=batch.text_BL.shape[1],
        valid_tokens=int(batch.text_valid_BL.sum()),
        predicted_patches=num_predicted,
        attention="causal",
    )
    return round(flops.training)


class TrainStep:
    """A whole training step (forward, backward, clipping, optimiser) on any batch.

    Args:
        size: what is trained.
        precision: "fp32" or "bf16".
        dense: the straightforward way, see :class:`DenseObjective`.
        compiled: transformer blocks through torch.compile.
    """

    def __init__(self, size: Size, precision: str, *, dense: bool = False, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.precision = precision
        self.encoder = build_encoder(size.encoder_config)
        self.objective = (DenseObjective if dense else AIMv2Objective)(
            AIMv2Config(decoder=size.decoder), encoder=self.encoder, vocab_size=size.vocab_size
        )
        self.modules = nn.ModuleList([self.encoder, self.objective])
        choose_fused_attention(self.modules, device_type="cpu", dtype=DTYPES[precision])
        if compiled:
            compile_blocks(self.modules, device_type="cpu")
        self.optimizer = build_optimizer(self.modules, OptimConfig(warmup_steps=1))

    def __call__(self, batch: ImageTextBatch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.objective(self.encoder, batch)
            loss = sum(term.weight * term.total / term.count for term in terms.values())
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_step(size: Size, precision: str, *, dense: bool, compiled: bool = False) -> tuple[Callable[[], None], int]:
    """A training step on one random batch, and the FLOPs that its loss needs."""
    step = TrainStep(size, precision, dense=dense, compiled=compiled)
    img_size = size.encoder_config.image_spec().img_size
    batch = make_batch(size, img_size, padded_to=CONTEXT_LENGTH if dense else None)
    with torch.no_grad():
        num_predicted = int(step.objective(step.encoder, batch)["image_mse"].count)
    flops = step_flops(step.encoder, step.objective.decoder, batch, num_predicted=num_predicted)
    return lambda: step(batch), flops


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def gemm_flops_per_s(dtype: torch.dtype) -> float:
    """The best rate over a few square products, each run three times."""
    best = 0.0
    for side in GEMM_SIDES:
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        best = max(best, *(2 * side**3 / seconds(lambda a=a, b=b: a @ b) for _ in range(3)))
    return best


def measure(
    name: str, precision: str, *, rounds: int, advance: Callable[[], None], compiled: bool = False
) -> dict[str, Any]:
    """One row: all three timed in turn, `rounds` times after a warm-up."""
    size = SIZES[name]
    step, flops = make_step(size, precision, dense=False, compiled=compiled)
    dense, _ = make_step(size, precision, dense=True)
    gemm, times, dense_times = [], [], []
    for _ in range(2):
        step(), dense()
    for _ in range(rounds):
        gemm.append(gemm_flops_per_s(DTYPES[precision]))
        times += [seconds(step) for _ in range(3)]
        dense_times += [seconds(dense) for _ in range(2)]
        advance()
    return {
        "size": name,
        "precision": precision,
        "compiled": compiled,
        "batch_size": size.batch_size,
        "step_gflop": flops / 1e9,
        "step_ms": 1e3 * min(times),
        "step_ms_median": 1e3 * median(times),
        "imgs_per_s": size.batch_size / min(times),
        "gemm_gflops_per_s": max(gemm) / 1e9,
        "share_of_gemm": flops / min(times) / max(gemm),
        "dense_ms": 1e3 * min(dense_times),
        "speedup_over_dense": min(dense_times) / min(times),
        "speedup_over_dense_median": median(dense_times) / median(times),
        "rounds": rounds,
    }


def measure_vocabulary_loss(precision: str, *, rounds: int) -> dict[str, Any]:
    """The text head's loss alone, forward and backward, at small-112's size: ours, plain, and torch's own in blocks."""
    size = SIZES["small-112"]
    batch = make_batch(size, 112)
    count = int(batch.text_valid_BL.sum())
    dtype = DTYPES[precision]
    hidden_MD = torch.randn(count, size.decoder.embed_dim).to(dtype).requires_grad_()
    weight_VD = (torch.randn(size.vocab_size, size.decoder.embed_dim) * 0.02).to(dtype).requires_grad_()
    target_M = batch.text_BL[batch.text_valid_BL]
    options = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=256)
    ways = {
        "ours": lambda: vocabulary_loss_sum(hidden_MD, weight_VD, target_M),
        "plain": lambda: dense_vocabulary_loss_sum(hidden_MD, weight_VD, target_M),
        "torch, in blocks": lambda: F.linear_cross_entropy(
            hidden_MD, weight_VD, target_M, reduction="sum", options=options
        ),
    }
    result: dict[str, Any] = {"precision": precision, "rows": count, "vocab_size": size.vocab_size}
    for name, loss in ways.items():

        def step(loss: Callable[[], Tensor] = loss) -> None:
            hidden_MD.grad = weight_VD.grad = None
            loss().backward()

        step()
        result[name] = {"ms": 1e3 * min(seconds(step) for _ in range(rounds)), "peak_mib": peak_mib(step)}
    return result


def peak_mib(function: Callable[[], Any]) -> float:
    """Most memory that torch had allocated at once on the CPU above the start, from the profiler's record."""
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        function()
    alive = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak / 2**20


def show(rows: Sequence[dict[str, Any]], losses: Sequence[dict[str, Any]]) -> None:
    console = Console(width=130 if not sys.stdout.isatty() else None)
    table = Table(title=f"Training step, batch 16, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for column in (
        "size",
        "precision",
        "step ms (median)",
        "images/s",
        "GFLOP",
        "best product GFLOP/s",
        "share",
        "dense ms",
        "x dense",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["size"],
            row["precision"] + (", compiled" if row["compiled"] else ""),
            f"{row['step_ms']:.0f} ({row['step_ms_median']:.0f})",
            f"{row['imgs_per_s']:.1f}",
            f"{row['step_gflop']:.1f}",
            f"{row['gemm_gflops_per_s']:.0f}",
            f"{100 * row['share_of_gemm']:.0f}%",
            f"{row['dense_ms']:.0f}",
            f"{row['speedup_over_dense']:.2f}",
        )
    console.print(table)
    if losses:
        first = losses[0]
        table = Table(
            title=f"Vocabulary loss alone, {first['rows']} valid tokens x {first['vocab_size']:,} words, forward and backward"
        )
        for column in ("precision", "ours: ms, peak MiB", "plain: ms, peak MiB", "torch, in blocks: ms, peak MiB"):
            table.add_column(column, justify="right")
        for row in losses:
            cells = (
                f"{row[name]['ms']:.0f}, {row[name]['peak_mib']:.0f}" for name in ("ours", "plain", "torch, in blocks")
            )
            table.add_row(row["precision"], *cells)
        console.print(table)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5, help="times that each thing is timed in turn")
    parser.add_argument("--compile", action="store_true", help="time each step with compiled blocks, too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.json"))
    options = parser.parse_args(args)
    ways = (False, True) if options.compile else (False,)
    cases = list(product(options.sizes, options.precisions, ways))
    with Progress(transient=True) as progress:
        task = progress.add_task("timing", total=len(cases) * options.rounds)
        rows = [
            measure(size, precision, compiled=way, rounds=options.rounds, advance=lambda: progress.advance(task))
            for size, precision, way in cases
        ]
    losses = []
    if "small-112" in options.sizes:
        losses = [measure_vocabulary_loss(precision, rounds=options.rounds) for precision in options.precisions]
    show(rows, losses)
    about = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    sizes = {name: asdict(SIZES[name]) for name in options.sizes}
    content = {**about, "sizes": sizes, "steps": rows, "vocabulary_loss": losses}
    write_result(options.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
