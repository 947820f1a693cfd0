"""torch.compile of transformer blocks: the part of a model whose shapes repeat.

Whole-model compilation would recompile all the time: the heads run on valid tokens and predicted patches only, as many as a
batch happens to have. Blocks of one stack share one graph. An encoder's have two shapes of input at most (with and without
a mask); a decoder's sequence is as long as the longest caption, in multiples of 8, which torch marks as dynamic after the
first change.
"""

import logging
import shutil

import torch
from torch import nn
from torch._dynamo import config as dynamo_config

from pretrain.models.recompute import transformer_blocks
from pretrain.types import UserError

_log = logging.getLogger(__name__)
#: Graphs of one piece of code. More than this and torch runs it uncompiled: training and validation, with and without a
#: mask, static and dynamic, are six.
MAX_GRAPHS = 8


def compile_blocks(root: nn.Module, *, device_type: str) -> None:
    """Compile every transformer block of `root` in place; names of parameters stay.

    Raises:
        UserError: on a CPU without a C++ compiler, which inductor needs.
    """
    if device_type == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        raise UserError("model.compile=true needs a C++ compiler (g++) on a CPU: install one, or leave it out")
    dynamo_config.recompile_limit = MAX_GRAPHS
    blocks = transformer_blocks(root)
    for block in blocks:
        block.compile()
    _log.info("compiling %d blocks; the first steps take a minute or so", len(blocks))


def graphs_compiled() -> int:
    """How many graphs torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
