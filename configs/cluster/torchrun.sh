#!/usr/bin/env bash
# One run on several nodes with torchrun. Start it on every node, with the same values and HEAD naming one of them:
#
#   NODES=2 DEVICES=8 HEAD=node0 NAME=large CONFIG=configs/pretrain/mine.yaml configs/cluster/torchrun.sh
#
# Arguments behind it go to the command line, e.g. --trainer.strategy=ddp. RUNS must be a folder that all nodes see.
# SIGTERM or Ctrl-C to torchrun: all processes finish their step and save (torchrun waits 30 seconds for them); started
# again, the run goes on from there.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${NAME:?the name of the run, the same on every node}"
NODES=${NODES:-1}
DEVICES=${DEVICES:-8}
HEAD=${HEAD:-localhost}
PORT=${PORT:-29500}
RUNS=${RUNS:-runs}
CONFIG=${CONFIG:-configs/pretrain/aimv2_nano_scenes.yaml}
PYTHON=${PYTHON:-.venv/bin/python}

resume=()
if [ -f "$RUNS/$NAME/checkpoints/last.ckpt" ]; then resume=(--ckpt_path last); fi

# data.batch_size is that of one device: a step takes batch_size x DEVICES x NODES samples
exec "$PYTHON" -m torch.distributed.run \
  --nnodes "$NODES" --nproc-per-node "$DEVICES" --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "$NAME" \
  -m pretrain fit --config "$CONFIG" --runs "$RUNS" --name "$NAME" \
  --trainer.num_nodes "$NODES" --trainer.devices "$DEVICES" --trainer.strategy fsdp2 --trainer.precision bf16-mixed \
  "${resume[@]}" "$@"
