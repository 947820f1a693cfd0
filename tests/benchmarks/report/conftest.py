import json
from dataclasses import asdict

import pytest

from benchmarks.rows import seal
from evals.results import EvalResult


@pytest.fixture
def row():
    """A row of results as a mapping, with its seal; fields are changed before it is sealed."""

    def make(**changes):
        content = asdict(
            EvalResult(
                task="knn",
                dataset="scenes_shape",
                synthetic=True,
                split="test",
                metric="top1",
                value=50.0,
                n=400,
                seed=0,
                encoder="runs/a-0",
                objective="aimv2",
                samples_seen=1000,
                training_flops=None,
                config_hash="c",
                checkpoint_hash="w",
                code_hash="k",
                run="runs/evals/a",
                command="python -m evals imagenet --encoder runs/a-0",
                wall_s=1.0,
            )
        )
        return seal({**content, **changes})

    return make


@pytest.fixture
def results(tmp_path):
    """A folder of results that is filled with text, lines of JSON, or bytes."""

    def fill(**files):
        folder = tmp_path / "results"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            path = folder / name.replace("__", ".")
            if isinstance(content, list):
                content = "".join(json.dumps(one, sort_keys=True) + "\n" for one in content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return fill
