"""Train, answer, score, keep: rows once, resume as if never stopped, answers scored again without the model."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evals.data.labelled import BadSample, LabelledSet
from evals.features import FeatureConfig
from evals.load import load_encoder
from evals.multimodal import job as job_module
from evals.multimodal.answers import paired, read_kept, score
from evals.multimodal.config import ConnectorTrainConfig, RecipeConfig, TrainConfig
from evals.multimodal.examples import Answer, Conversation, Example, ExampleSet, Generation, InstructionSet
from evals.multimodal.feeding import StepBatches
from evals.multimodal.job import AnswerJob, JobConfig, Task, padded
from evals.multimodal.language import LanguageConfig, SmallConfig
from evals.multimodal.module import AnswerModule
from evals.multimodal.rescore import main as rescore
from evals.multimodal.routes import ConnectorRoute
from evals.results import read
from pretrain.types import Fault, UserError

COLORS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
SPEC = "random:timm:test_vit[img_size=32]"


class Plates(LabelledSet):
    """Pictures of one colour; number k is red where k is even. Those of `bad` cannot be read."""

    name, split, classes = "plates", "test", ("picture",)

    def __init__(self, num, bad=()):
        self.label_N, self.bad = np.zeros(num, dtype=np.int64), bad

    def load(self, index):
        if index in self.bad:
            raise BadSample(Fault("unreadable", self.key(index), "broken"))
        return Image.new("RGB", (40, 30), list(COLORS.values())[index % 2])

    def key(self, index):
        return f"plate{index}.png"

    def pictures_identity(self):
        return f"plates {len(self.label_N)} {self.bad}"


def color(number):
    return list(COLORS)[number % 2]


class Questions(ExampleSet):
    name, split, synthetic, repaired = "plates", "test", True, {}

    def __init__(self, num=6, bad=()):
        self.pictures = Plates(num, bad)
        self.examples = [
            Example(f"q{k}-{n}", k, question, (color(k),) * 10 if n == 0 else ("yes",) * 10, kind)
            for k in range(num)
            for n, (question, kind) in enumerate([("what colour is it?", "colour"), ("is it a plate?", "yes/no")])
        ]

    def identity(self):
        return f"questions {self.pictures.pictures_identity()}"


class Lessons(InstructionSet):
    name, synthetic, independent, repaired = "lessons", True, True, {}

    def __init__(self, num=8):
        self.pictures = Plates(num)
        turns = [(("what colour is it?", color(k)), ("is it a plate?", "yes")) for k in range(num)]
        self.conversations = [Conversation(f"c{k}", k, turns[k]) for k in range(num)]

    def identity(self):
        return f"lessons {len(self.conversations)}"


@dataclass(frozen=True)
class Asked:
    """What a job needs of a task's config."""

    name: str = "plates"
    metric: str = "vqa"
    prompt: str = ""
    max_tokens: int = 4

    def asked(self, example):
        return example.question


@pytest.fixture
def encoder():
    return padded(load_encoder(SPEC), img_size=None)


def config_in(folder, **train):
    recipe = RecipeConfig(
        lm=LanguageConfig(small=SmallConfig(embed_dim=16, depth=1, num_heads=2, vocab_size=300)),
        train=ConnectorTrainConfig(
            **{
                "connector_lr_factor": 8.0,
                "lr": 1e-3,
                "steps": 6,
                "warmup_steps": 1,
                "batch_size": 4,
                "precision": "fp32",
                **train,
            }
        ),
    )
    features = FeatureConfig(folder=folder / "features", num_workers=0, dtype="float32", precision="fp32")
    return JobConfig("vqa", recipe, features=features, out=folder / "evals", results=folder / "results.jsonl")


def job_in(folder, encoder, *, seed=0, config=None, notes=None, **train):
    config = config or config_in(folder, **train)
    route = ConnectorRoute(config.recipe, encoder=encoder, seed=seed)
    return AnswerJob(
        route,
        encoder,
        Lessons(),
        config,
        seed=seed,
        note=(notes if notes is not None else []).append,
        accelerator="cpu",
    )


def weights(outcome):
    from safetensors.torch import load_file

    model = Path(outcome.folder) / "model"
    return load_file(model / "connector.safetensors") | load_file(model / "lm" / "model.safetensors")


def test_rows_and_answers_of_a_task(tmp_path, encoder):
    (outcome,) = job_in(tmp_path, encoder).run([Task(Asked(), Questions())])
    rows = read(tmp_path / "results.jsonl")
    assert rows == outcome.rows
    first = rows[0]
    assert (first.task, first.dataset, first.n, first.synthetic) == ("vqa_connector", "plates", 12, True)
    assert first.encoder == SPEC
    assert rows[-1].details["last_of_task"]
    assert set(first.details["by_kind"]) == {"colour", "yes/no"}
    assert first.details["by_kind"]["colour"]["n"] == 6
    kept = [json.loads(line) for line in (outcome.folder / first.details["answers"]).read_text().splitlines()]
    assert [line["id"] for line in kept] == [example.example_id for example in Questions().examples]
    assert kept[0]["prompt"] == "<image> what colour is it?"
    assert kept[0]["file"] == "plate0.png"
    assert first.value == pytest.approx(100 * np.mean([line["score"] for line in kept]))
    assert not (outcome.folder / "checkpoints").exists()


def test_it_learns_what_it_is_taught(tmp_path, encoder):
    (outcome,) = job_in(tmp_path, encoder, steps=120).run([Task(Asked(), Questions())])
    assert outcome.rows[0].value == 100


def test_without_pictures_the_colour_is_not_to_be_known(tmp_path):
    """All plates look alike then, so that one colour is said of all: half are right, and each question whose answer is one."""
    job = job_in(tmp_path, None, steps=120)
    (outcome,) = job.run([Task(Asked(), Questions())])
    kinds = outcome.rows[0].details["by_kind"]
    assert (kinds["colour"]["value"], kinds["yes/no"]["value"]) == (50, 100)
    assert (outcome.rows[0].encoder, outcome.rows[0].checkpoint_hash) == ("none", "none")
    assert len({a.text for a, e in zip(outcome.kept.answers, outcome.kept.examples) if e.kind == "colour"}) == 1


def test_finished_work_is_found_again(tmp_path, encoder, monkeypatch):
    task = Task(Asked(), Questions())
    first = job_in(tmp_path, encoder).run([task])
    monkeypatch.setattr(AnswerJob, "_make_ready", lambda self: pytest.fail("it was done already"))
    notes = []
    again = job_in(tmp_path, encoder, notes=notes).run([task])
    assert again[0].rows == first[0].rows
    assert [a.text for a in again[0].kept.answers] == [a.text for a in first[0].kept.answers]
    assert any("already" in line for line in notes)
    assert len(read(tmp_path / "results.jsonl")) == len(first[0].rows)


def test_a_second_task_uses_the_trained_model(tmp_path, encoder, monkeypatch):
    job_in(tmp_path, encoder).run([Task(Asked(), Questions())])
    monkeypatch.setattr(AnswerJob, "_fit", lambda self: pytest.fail("it was trained already"))
    second = Task(Asked(name="again"), Questions())
    (outcome,) = job_in(tmp_path, encoder).run([second])
    assert outcome.rows[0].dataset == "again"
    assert outcome.rows[0].details["training"]["steps"] == 6


def test_stop_and_resume_is_an_unbroken_training(tmp_path, encoder, monkeypatch):
    """Three chunks of two steps, stopped in the second: the checkpoint after the first is gone on with."""
    task = Task(Asked(), Questions())
    (whole,) = job_in(tmp_path / "whole", encoder, save_every=2).run([task])
    steps = []
    original = AnswerModule.training_step

    def stopping(self, batch, batch_idx):
        steps.append(self.global_step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(AnswerModule, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        job_in(tmp_path / "parts", encoder, save_every=2).run([task])
    (resumed,) = job_in(tmp_path / "parts", encoder, save_every=2).run([task])
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    first, second = weights(whole), weights(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_how_often_it_is_saved_changes_nothing(tmp_path, encoder):
    """Six steps in two chunks, and in one."""
    task = Task(Asked(), Questions())
    (one,) = job_in(tmp_path / "a", encoder, save_every=3).run([task])
    (other,) = job_in(tmp_path / "b", encoder, save_every=100).run([task])
    assert one.rows[0].config_hash == other.rows[0].config_hash
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_pictures_read_each_time_are_those_that_are_cached(tmp_path, encoder):
    task = Task(Asked(), Questions())
    (cached,) = job_in(tmp_path / "a", encoder).run([task])
    online = replace(config_in(tmp_path / "b"), pictures="online")
    (seen,) = job_in(tmp_path / "b", encoder, config=online).run([task])
    for name, tensor in weights(cached).items():
        torch.testing.assert_close(weights(seen)[name], tensor, atol=1e-4, rtol=1e-3)


def test_the_connector_learns_at_its_own_rate(tmp_path, encoder):
    config = config_in(tmp_path)
    route = ConnectorRoute(config.recipe, encoder=encoder, seed=0)
    model = route.build(Lessons())
    module = AnswerModule(model, config.recipe.train, fast=route.fast, fast_factor=route.fast_factor)
    groups = module.configure_optimizers()["optimizer"].param_groups
    names = {id(p): name for name, p in module.model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            fast = names[id(parameter)].startswith("connector.")
            assert group["initial_lr"] == pytest.approx(1e-3 * (8 if fast else 1))
            assert group["weight_decay"] == (
                0.01 if parameter.ndim > 1 and "embed_tokens" not in names[id(parameter)] else 0
            )


def test_the_encoder_is_neither_trained_nor_saved(tmp_path, encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    config = replace(config_in(tmp_path), pictures="online")
    job = job_in(tmp_path, encoder, config=config)
    job.run([Task(Asked(), Questions())])
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in before.items())
    assert not any("vit" in name for name in dict(job.route.model.named_parameters()))


def test_unreadable_pictures_do_not_count(tmp_path, encoder):
    dataset, notes = Questions(num=30, bad=(3,)), []
    (outcome,) = job_in(tmp_path, encoder, notes=notes).run([Task(Asked(), dataset)])
    assert outcome.rows[0].n == 58
    assert "plates: 2 examples have pictures that cannot be read and do not count" in notes


def test_shots_stand_in_the_prompt(tmp_path, encoder):
    config = replace(config_in(tmp_path), shots=2)
    (outcome,) = job_in(tmp_path, encoder, config=config).run([Task(Asked(), Questions())])
    prompt = outcome.kept.answers[0].prompt
    assert prompt.count("<image>") == 3
    assert prompt.endswith("<image> what colour is it?")
    assert outcome.rows[0].details["shots"] == 2


def test_an_answer_beyond_the_context_names_its_example(tmp_path, encoder):
    config = config_in(tmp_path)
    lm = LanguageConfig(small=SmallConfig(embed_dim=16, depth=1, num_heads=2, vocab_size=300, context_length=30))
    config = replace(config, recipe=replace(config.recipe, lm=lm), shots=4)
    with pytest.raises(
        UserError, match=r"plates: example 'q0-0': its prompt of .* exceed the language model's context of 30"
    ):
        job_in(tmp_path, encoder, config=config).run([Task(Asked(), Questions())])


def test_conversations_beyond_the_context_are_counted(tmp_path, encoder):
    config, notes = config_in(tmp_path), []
    num_patches = int(np.prod(encoder.grid(encoder.transform.spec.img_size, encoder.transform.spec.img_size)))
    lm = LanguageConfig(
        small=SmallConfig(embed_dim=16, depth=1, num_heads=2, vocab_size=300, context_length=num_patches + 12)
    )
    config = replace(config, recipe=replace(config.recipe, lm=lm))
    job_in(tmp_path, encoder, config=config, notes=notes)._fit()
    assert any("conversations" in line and f"{num_patches + 12}" in line for line in notes)


def test_a_diverged_training_says_so(tmp_path, encoder, monkeypatch):
    original = AnswerModule.training_step
    monkeypatch.setattr(AnswerModule, "training_step", lambda self, b, i: original(self, b, i) * float("nan"))
    monkeypatch.setattr(
        AnswerModule,
        "on_train_epoch_end",
        lambda self: setattr(self, "_last_loss", torch.tensor(float("nan"))) or check(self),
    )
    with pytest.raises(UserError, match=r"training diverged by step 6 of 6 .* train.lr=0.001 must be smaller"):
        job_in(tmp_path, encoder).run([Task(Asked(), Questions())])


check = AnswerModule.on_train_epoch_end


def test_answers_are_scored_again_without_the_model(tmp_path, encoder, capsys):
    (outcome,) = job_in(tmp_path, encoder).run([Task(Asked(), Questions())])
    path = outcome.folder / outcome.rows[0].details["answers"]
    again = read_kept(path, metric="vqa")
    assert again.scores.values == outcome.kept.scores.values
    assert again.interval() == outcome.kept.interval()
    assert rescore([str(path), "--metric", "gqa"]) == 0
    assert "12 answers scored by gqa" in capsys.readouterr().out
    path.write_text(path.read_text() + '{"id": 3}\n')
    assert rescore([str(path), "--metric", "vqa"]) == 2
    assert "line 13: this is no answer of an evaluation: 'picture' is missing" in capsys.readouterr().err


def test_a_paired_difference_by_hand():
    """On three pictures of two questions each: the first model has 4 of 6 right, the second 1 of 6: 50 points."""
    dataset = Questions(num=3)
    right = [example.answers[0] for example in dataset.examples]

    def kept(numbers):
        texts = [right[k] if k in numbers else "?" for k in range(6)]
        answers = [Answer(e.example_id, text, "") for e, text in zip(dataset.examples, texts, strict=True)]
        return score(dataset, answers, metric="vqa")

    value, (low, high), count = paired(kept({0, 1, 2, 3}), kept({0}))
    assert (value, count) == (pytest.approx(50), 6)
    assert low < 50 < high


def test_an_example_without_an_answer_takes_its_group_with_it():
    dataset = Questions(num=2)
    dataset.examples = [replace(example, group=f"g{example.picture}") for example in dataset.examples]
    answers = [Answer(example.example_id, "red", "") for example in dataset.examples[1:]]
    assert [example.picture for example in score(dataset, answers, metric="vqa").examples] == [1, 1]
    with pytest.raises(UserError, match="plates test: none of its pictures can be read"):
        score(dataset, [], metric="vqa")


def test_batch_k_is_a_function_of_seed_and_k():
    """Ten rows, batches of 4: every 5 batches are two whole passes; chunks of 3 go on where the last one ended."""
    whole = StepBatches(10, batch_size=4, chunk=10, seed=0)
    batches = list(whole)
    rows = [row for batch in batches for _, row in batch]
    assert all(sorted(rows[start : start + 10]) == list(range(10)) for start in range(0, 40, 10))
    assert rows[:10] != rows[10:20]
    parts = StepBatches(10, batch_size=4, chunk=3, seed=0)
    chunks = []
    for number in range(3):
        parts.set_epoch(number)
        chunks += list(parts)
    assert chunks == batches[:9]
    assert list(StepBatches(10, batch_size=4, chunk=10, seed=1)) != batches


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"lr": 0}, "train.lr=0 must be above 0"),
        ({"steps": 5, "warmup_steps": 5}, "train.warmup_steps=5 must be below train.steps=5"),
        ({"batch_size": 4, "accumulate": 3}, "train.accumulate=3 must divide train.batch_size=4"),
        ({"min_lr": 1.0}, "train.min_lr=1.0 is above"),
        ({"beta1": 1.0}, "train.beta1=1.0 must be at least 0 and below 1"),
        ({"weight_decay": -1}, "train.weight_decay=-1 must not be negative"),
    ],
)
def test_settings_of_training_that_cannot_be_meant(tmp_path, train, line):
    with pytest.raises(UserError, match=line):
        config_in(tmp_path, **train).check()


def test_other_settings_that_cannot_be_meant(tmp_path):
    with pytest.raises(UserError, match="shots=-1 must not be negative"):
        replace(config_in(tmp_path), shots=-1).check()
    with pytest.raises(UserError, match="samples, which beams do not"):
        Generation(temperature=1.0, num_beams=2).check()
    with pytest.raises(UserError, match=r"generation\.max_tokens=0 must be at least 1"):
        Generation(max_tokens=0).check()


@pytest.mark.parametrize(
    ("steps", "save_every", "chunk"), [(5000, 500, 500), (6, 4, 3), (6, 100, 6), (7, 2, 1), (1000, 300, 250)]
)
def test_a_chunk_divides_the_training(steps, save_every, chunk):
    assert TrainConfig(steps=steps, save_every=save_every).chunk_steps == chunk


def test_the_job_module_names_the_model_without_pictures():
    assert job_module.NO_IMAGE.samples_seen == 0
