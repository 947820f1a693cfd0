"""Imports go one way: pretrain <- evals <- benchmarks, and inside pretrain types <- data, models <- objectives <- module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: what each part of `pretrain` may import; `files` and `rng` and `types` stand below everything
FOUNDATION = {"types", "rng", "files"}
ALLOWED = {
    "types": set(),
    "rng": set(),
    "files": set(),
    "optim": FOUNDATION,
    "run": FOUNDATION,
    "branch": FOUNDATION | {"optim", "run"},
    "data": FOUNDATION | {"data"},
    "models": FOUNDATION | {"models"},
    "objectives": FOUNDATION | {"models", "objectives", "flops"},  # each says what its forward pass costs
    "module": FOUNDATION | {"data", "models", "objectives", "optim"},
    "export": FOUNDATION | {"data", "models", "objectives", "optim", "module", "run"},
    "model_card": FOUNDATION | {"models", "objectives", "export"},
    "export_formats": FOUNDATION | {"models", "export", "model_card"},
    "flops": FOUNDATION | {"models"},
    "memory": FOUNDATION | {"models", "objectives"},
    "strategies": FOUNDATION | {"models"},
    "callbacks": FOUNDATION
    | {"data", "models", "objectives", "optim", "flops", "memory", "module", "run", "export", "callbacks"},
}
PACKAGES = {"pretrain": set(), "evals": {"pretrain"}, "benchmarks": {"pretrain", "evals"}}


def imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    package, *parts = path.relative_to(ROOT).with_suffix("").parts
    ours = {name for name in imports(path) if name.split(".")[0] in PACKAGES}
    assert {name.split(".")[0] for name in ours} <= PACKAGES[package] | {package}
    if package == "pretrain" and parts[0] in ALLOWED:
        inside = {name.split(".")[1] for name in ours}
        assert inside <= ALLOWED[parts[0]] | {"__init__"}, f"{path} imports {sorted(inside - ALLOWED[parts[0]])}"


def test_no_cycles():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files()}
    imported = {name: imports(path) for name, path in modules.items()}
    edges = {
        name: {m for m in modules if any(i == m or i.startswith(m + ".") for i in names) and m != name}
        for name, names in imported.items()
    }
    left = dict(edges)
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"cycle among {sorted(left)}"
        for name in free:
            del left[name]


def test_the_walk_sees_a_wrong_arrow(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from pretrain.module import PretrainModule\n    import evals.scenes\n")
    assert imports(path) == {"pretrain.module.PretrainModule", "evals.scenes"}
