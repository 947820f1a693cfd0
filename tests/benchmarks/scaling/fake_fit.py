"""Stands in for `python -m pretrain fit`: the same arguments and files, a step of a hundredth of a second, losses by a known law.

Refuses what the real one refuses: a branch without its checkpoint, a run that exists and was not asked to go on.
"""

import json
import sys
import time
from pathlib import Path

flags = {}
words = iter(sys.argv[1:])
for word in words:
    name, equals, value = word.removeprefix("--").partition("=")
    flags[name] = value if equals else next(words, "") if word.startswith("--") else ""
run = Path(flags["runs"]) / flags["name"]
checkpoints, last = run / "checkpoints", run / "checkpoints" / "last.ckpt"
if flags.get("ckpt_path") == "last":
    step = int(last.read_text())
elif last.exists():
    sys.exit("error: already holds a run")
else:
    step = int(Path(flags["branch_from"]).read_text()) if "branch_from" in flags else 0
checkpoints.mkdir(parents=True, exist_ok=True)
with (Path(flags["runs"]) / "started.txt").open("a") as file:
    file.write(f"{run.name} {step}\n")


def save(path: Path) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(str(step))
    beside.replace(path)


every, steps = int(flags.get("keep.every_n_steps", 0)), int(flags["trainer.max_steps"])
while step < steps:
    time.sleep(0.01)
    step += 1
    if every and step % every == 0:
        save(checkpoints / f"step_{step:07d}.ckpt")
    save(last)
width = int(flags["model.encoder.embed_dim"])
export = run / "export"
export.mkdir(exist_ok=True)
for name, shape in (("encoder", [width, width, 12]), ("objective", [width])):
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}, "__metadata__": {}}).encode()
    (export / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
samples = steps * 16
loss = 1 + 20 * samples**-0.5 + 3 * width**-1.0
summary = {"samples_seen": samples, "imgs_per_s": 100.0, "precision": "32", "val": {"loss": loss, "text_ce": loss / 2}}
summary |= {"baseline": {}, "training_flops": 6.0 * samples * 12 * width**2}
(run / "summary.json").write_text(json.dumps(summary))
