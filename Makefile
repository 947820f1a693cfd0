# Every target works with no arguments; a target that misses the environment builds it first.
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
VENV    ?= .venv
PY      := $(VENV)/bin/python
STAMP   := $(VENV)/.installed
CONFIG  ?= configs/pretrain/aimv2_nano_scenes.yaml
ARGS    ?=
SEEDS   ?= 3
NAME    ?= seeds
RUNS    ?= runs/latest
RUN     ?= runs/latest
TO      ?= timm
# the last run and a random encoder of its architecture, on scenes, where nothing is named
ENCODER ?=
DATASET ?=
DATA    ?=
MODEL   ?=
TASK    ?=
# studies of configs/benchmarks, a sweep of configs/benchmarks/sweeps, a study of configs/benchmarks/scaling
STUDY   ?=
SWEEP   ?= nano_rate
SCALING ?= nano
# folder with coco_mini and refcoco_mini
SHARED  ?= ../shared/data
WHERE    = $(if $(DATASET),--dataset '$(DATASET)') $(if $(DATA),--data '$(DATA)')

.DEFAULT_GOAL := help
.PHONY: help env pretrain seeds eval-imagenet eval-zeroshot eval-look eval-scenes eval-coco eval-refcoco eval-vqa eval-caption overfit-detection overfit-grounding overfit-dino finetune describe export bench bench-data bench-scaling bench-inference bench-probe kills ablations sweep dashboard scaling report kills-ablations kills-sweep test lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## build the environment in .venv (every other target does it when needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit(f"Python 3.11 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# mmdet's OpenCV wants libGL, which bare machines lack; the same without windows does not
	@$(PY) -c 'import cv2' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --force-reinstall --no-deps opencv-python-headless
	@touch $@

pretrain: $(STAMP) ## pre-train an encoder [CONFIG=configs/pretrain/NAME.yaml] [ARGS="--trainer.max_steps=100"]
	$(PY) -m pretrain fit --config $(CONFIG) $(ARGS)

seeds: $(STAMP) ## the default run SEEDS times, 10 minutes each, then the scenes table and the curves [NAME=seeds] [SEEDS=3]
	@echo "$(SEEDS) runs of about 10 minutes on 2 cores; finished ones are kept, an interrupted one goes on"
	for seed in $$(seq 0 $$(($(SEEDS) - 1))); do run=runs/$(NAME)-$$seed; \
	  if [ ! -f $$run/summary.json ]; then \
	    if [ -f $$run/checkpoints/last.ckpt ]; then resume="--ckpt_path last"; else resume=; fi; \
	    $(PY) -m pretrain fit --config $(CONFIG) --name $(NAME)-$$seed --seed_everything $$seed $$resume $(ARGS) || exit 1; \
	  fi; done
	$(PY) -m evals.scenes $$(seq -f 'runs/$(NAME)-%g' 0 $$(($(SEEDS) - 1))) --out benchmarks/results/scenes.json
	$(PY) -m benchmarks.curves $$(seq -f 'runs/$(NAME)-%g' 0 $$(($(SEEDS) - 1))) --out benchmarks/results/scenes_curves.png

eval-scenes: $(STAMP) ## probe an encoder and check its captions on scenes [RUNS="runs/a runs/b"]
	$(PY) -m evals.scenes $(RUNS)

eval-imagenet: $(STAMP) ## attentive and linear probe, k-NN, few-shot [ENCODER=SPEC] [DATASET=NAME] [DATA=imagenet-folder]
	$(PY) -m evals imagenet $(foreach e,$(ENCODER),--encoder '$(e)') $(WHERE) $(ARGS)

eval-zeroshot: $(STAMP) ## classify by class names, match pictures and captions [ENCODER=SPEC] [DATA=ImageNet] [ARGS="--retrieval coco"]
	$(PY) -m evals zeroshot $(if $(ENCODER),--encoder $(ENCODER)) $(WHERE) $(ARGS)

eval-look: $(STAMP) ## pictures of an encoder's features [ENCODER=SPEC] [DATASET=NAME] [DATA=FOLDER] [ARGS="--probe head.safetensors"]
	$(PY) -m evals look $(if $(ENCODER),--encoder $(ENCODER)) $(WHERE) $(ARGS)

eval-coco: $(STAMP) ## train a detector on an encoder, AP of boxes and masks, 8 minutes [ENCODER=SPEC] [DATASET=NAME] [DATA=FOLDER] [MODEL=grounding_dino]
	$(PY) -m evals coco $(foreach e,$(ENCODER),--encoder '$(e)') $(WHERE) $(if $(MODEL),--model $(MODEL)) $(ARGS)

eval-refcoco: $(STAMP) ## find what sentences name, precision@1, 7 minutes [ENCODER=SPEC] [DATASET=NAME] [DATA=FOLDER] [MODEL=grounding_dino]
	$(PY) -m evals refcoco $(foreach e,$(ENCODER),--encoder '$(e)') $(WHERE) $(if $(MODEL),--model $(MODEL)) $(ARGS)

eval-vqa: $(STAMP) ## answer questions about pictures, percent right, 15 minutes [ENCODER=SPEC] [TASK="vqav2 gqa"] [DATA=FOLDER]
	$(PY) -m evals vqa $(foreach e,$(ENCODER),--encoder '$(e)') $(foreach t,$(TASK),--task '$(t)') $(if $(DATA),--data '$(DATA)') $(ARGS)

eval-caption: $(STAMP) ## caption pictures, CIDEr-D and others, 15 minutes [ENCODER=SPEC] [TASK=flickr1k] [DATA=FOLDER]
	$(PY) -m evals caption $(foreach e,$(ENCODER),--encoder '$(e)') $(foreach t,$(TASK),--task '$(t)') $(if $(DATA),--data '$(DATA)') $(ARGS)

overfit-detection: $(STAMP) ## proof: a small Mask R-CNN over-fits 8 photographs [SHARED=../shared/data]
	$(PY) -m evals.detection.overfit --data $(SHARED) $(ARGS)

overfit-grounding: $(STAMP) ## proof: the light grounding head over-fits 8 photographs [SHARED=../shared/data]
	$(PY) -m evals.grounding.overfit_light --data $(SHARED) $(ARGS)

overfit-dino: $(STAMP) ## proof: a small Grounding DINO over-fits 8 photographs [SHARED=../shared/data]
	$(PY) -m evals.grounding.overfit_dino --data $(SHARED) $(ARGS)

finetune: $(STAMP) ## train the whole encoder on a classification set, 6 minutes [ENCODER=SPEC] [DATASET=NAME] [DATA=FOLDER]
	$(PY) -m evals finetune $(foreach e,$(ENCODER),--encoder '$(e)') $(WHERE) $(ARGS)

test: $(STAMP) ## run the tests [ARGS="-k name"]
	$(PY) -m pytest $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP) ## format the code and fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

describe: $(STAMP) ## parameters, FLOPs and tokens of a config, without training it [CONFIG=configs/pretrain/NAME.yaml]
	$(PY) -m pretrain describe --config $(CONFIG) $(ARGS)

export: $(STAMP) ## write a run's encoder for timm, transformers or ml-aim [RUN=runs/latest] [TO=timm|hf|aim]
	$(PY) -m pretrain export $(RUN) --to $(TO) $(ARGS)

bench: $(STAMP) ## time the training step against the machine's matrix-product rate [ARGS="--sizes nano --compile"]
	$(PY) -m benchmarks.throughput $(ARGS)

bench-data: $(STAMP) ## training fed from shards against one batch at hand; indexing and starting on 1,000 shards
	$(PY) -m benchmarks.feeding $(ARGS)
	$(PY) -m benchmarks.shard_index

bench-scaling: $(STAMP) ## step time against parameters and against tokens, with exponents
	$(PY) -m benchmarks.step_scaling $(ARGS)

bench-inference: $(STAMP) ## latency, throughput, FLOPs and memory of AIMv2, CLIP, SigLIP and DINOv2, 10 minutes [ARGS="--size base"]
	$(PY) -m benchmarks.inference $(ARGS)

bench-probe: $(STAMP) ## what the probe's 14 settings cost, against one
	$(PY) -m benchmarks.probe_grid $(ARGS)

kills: $(STAMP) ## kill a run 50 times and fill its disk, resume it: its weights must not notice (about 15 minutes)
	@echo "50 kills and 10 full disks, about 15 minutes on 2 cores"
	$(PY) -m benchmarks.kills $(ARGS)

ablations: $(STAMP) ## train and evaluate the rows of studies over SEEDS seeds, then their tables [STUDY="loss_choice prefix"] [SEEDS=3]
	$(PY) -m benchmarks.ablations $(STUDY) --seeds $(SEEDS) $(ARGS)

sweep: $(STAMP) ## search fields of a config with Optuna, several workers, resumable [SWEEP=nano_rate] [ARGS="--trials 20"]
	$(PY) -m benchmarks.sweep $(SWEEP) $(ARGS)

dashboard: $(STAMP) ## look at sweeps in the browser while they run [SWEEP=nano_rate]
	$(PY) -m benchmarks.sweep.dashboard $(SWEEP) $(ARGS)

scaling: $(STAMP) ## sizes by budgets from half-cosine trunks, power laws and plots [SCALING=nano]
	$(PY) -m benchmarks.scaling $(SCALING) $(ARGS)

report: $(STAMP) ## all tables, plots and pictures as one HTML page, Markdown, LaTeX and CSV, in runs/report
	$(PY) -m benchmarks.report $(ARGS)

kills-ablations: $(STAMP) ## kill the runner of a study 10 times: no row may be lost or doubled
	$(PY) -m benchmarks.study_kills $(ARGS)

kills-sweep: $(STAMP) ## kill workers of a sweep 10 times: no trial may be lost or doubled
	$(PY) -m benchmarks.sweep.kills $(ARGS)

clean: ## remove the environment and caches (runs stay)
	rm -rf $(VENV) .ruff_cache .pytest_cache *.egg-info
