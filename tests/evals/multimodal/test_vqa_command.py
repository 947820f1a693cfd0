"""`python -m evals vqa` and `caption` as users call them: on scenes, on files in official layouts, and what they refuse."""

import json

import pytest
import yaml
from PIL import Image

from evals.__main__ import main
from evals.results import read
from pretrain.cli import main as pretrain

LEVELS = {"word": 1.0, "two": 1.0}
PRETRAINED = {
    "trainer": {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
    "model": {
        "encoder": {"name": "aimv2_nano_patch4_32", "embed_dim": 32, "depth": 1, "mlp_hidden_dim": 64},
        "objective": {"decoder": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    },
    "data": {
        "batch_size": 4,
        "num_workers": 0,
        "num_val": 4,
        "vocab_size": 300,
        "train": {"kind": "scenes", "levels": LEVELS, "captions": {"short": 1.0}},
    },
}
SMALL = [
    "--lm.small.embed_dim=16",
    "--lm.small.depth=1",
    "--lm.small.num_heads=2",
    "--lm.small.vocab_size=300",
    "--train.steps=10",
    "--train.warmup_steps=1",
    "--train.batch_size=4",
    "--decoder.steps=4",
    "--decoder.warmup_steps=1",
    "--decoder.batch_size=4",
    "--features.num_workers=0",
]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run of a few steps: what the kept decoder is taken from."""
    folder = tmp_path_factory.mktemp("vqa")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(PRETRAINED))
    assert pretrain(["fit", "--config", str(folder / "tiny.yaml"), "--runs", str(folder / "runs"), "--name", "a"]) == 0
    return folder / "runs" / "a"


@pytest.fixture
def tasks(tmp_path):
    """Tasks and training data on a few scenes, as files that commands take by path."""

    def write(name, **content):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    common = {"kind": "scenes", "split": "test", "num": 6, "levels": LEVELS, "max_tokens": 4}
    taught = write("taught", kind="scenes", num=8, levels=LEVELS, kinds=["object", "text", "choice"])
    captions = write(
        "taught_captions", kind="scene_captions", num=8, levels=LEVELS, styles=["short"], prompt="caption it."
    )
    return {
        "object": write("some_object", metric="vqa", question_kind="object", taught=taught, **common),
        "choice": write("some_choice", metric="circular", question_kind="choice", taught=taught, **common),
        "caption": write(
            "some_captions",
            kind="scene_captions",
            metric="captions",
            split="test",
            num=5,
            levels=LEVELS,
            styles=["short"],
            prompt="caption it.",
            max_tokens=8,
            taught=captions,
        ),
        "taught": taught,
    }


def outputs(tmp_path):
    return [
        f"--out={tmp_path / 'evals'}",
        f"--results={tmp_path / 'results.jsonl'}",
        f"--features.folder={tmp_path / 'features'}",
    ]


def test_questions_by_all_routes_and_once_more(tiny_run, tasks, tmp_path, capsys):
    args = ["vqa", f"--encoder=mine={tiny_run}", f"--encoder=random=random:{tiny_run}", "--no_image=true"]
    args += ["--task", tasks["object"], "--task", tasks["choice"], *SMALL, *outputs(tmp_path)]
    assert main(args) == 0
    shown = capsys.readouterr().out
    rows = read(tmp_path / "results.jsonl")
    found = {(row.task, row.dataset, row.encoder) for row in rows}
    specs = (str(tiny_run), f"random:{tiny_run}")
    assert found == {
        *(
            (task, name, spec)
            for task in ("vqa_connector", "vqa_decoder")
            for name in ("some_object", "some_choice")
            for spec in specs
        ),
        *(("vqa_connector", name, "none") for name in ("some_object", "some_choice")),
    }
    assert "some_object: mine, connector + LM is" in shown
    assert "above no image on the same" in shown
    pages = list((tmp_path / "evals").rglob("*.png"))
    assert {"answers_some_object.png", "answers_some_choice.png", "by_kind.png", "learning.png"} <= {
        p.name for p in pages
    }
    assert all(Image.open(page).size[0] > 300 for page in pages)
    assert main(args) == 0
    assert len(read(tmp_path / "results.jsonl")) == len(rows)
    circular = [row for row in rows if row.dataset == "some_choice" and row.metric == "circular"]
    assert {row.n for row in circular} == {6}


def test_a_kept_decoder_needs_a_run_of_this_suite(tasks, tmp_path, capsys):
    args = ["vqa", "--encoder=random:timm:test_vit[img_size=32]", "--task", tasks["object"], *SMALL, *outputs(tmp_path)]
    assert main([*args, "--route=decoder"]) == 2
    assert "has no decoder; give a run of this suite" in capsys.readouterr().err
    assert main(args) == 0
    assert {row.task for row in read(tmp_path / "results.jsonl")} == {"vqa_connector"}


def test_captions_beside_the_most_frequent_one(tiny_run, tasks, tmp_path, capsys):
    args = ["caption", f"--encoder={tiny_run}", "--task", tasks["caption"], *SMALL, *outputs(tmp_path)]
    assert main(args) == 0
    rows = read(tmp_path / "results.jsonl")
    assert {row.task for row in rows} == {"caption_decoder_frozen", "caption_connector", "caption_most_frequent"}
    assert {"cider_d", "bleu_4", "rouge_l", "distinct", "repetition"} <= {row.metric for row in rows}
    shown = capsys.readouterr().out
    assert "most frequent caption" in shown
    assert any(page.name == "captions_some_captions.png" for page in (tmp_path / "evals").rglob("*.png"))
    assert main(args) == 0
    assert len(read(tmp_path / "results.jsonl")) == len(rows)


def test_beams_are_other_rows(tiny_run, tasks, tmp_path):
    args = [
        "caption",
        f"--encoder={tiny_run}",
        "--task",
        tasks["caption"],
        "--route=decoder_frozen",
        *outputs(tmp_path),
    ]
    assert main(args) == 0
    assert main([*args, "--generation.num_beams=3"]) == 0
    own = [
        row
        for row in read(tmp_path / "results.jsonl")
        if row.metric == "cider_d" and row.task == "caption_decoder_frozen"
    ]
    assert [row.details["generation"]["num_beams"] for row in own] == [1, 3]


@pytest.fixture
def vqav2(tmp_path):
    """VQAv2's files with three pictures, and LLaVA's JSON about them."""
    folder = tmp_path / "vqav2"
    (folder / "val2014").mkdir(parents=True)
    questions, annotations, lessons = [], [], []
    for number in (1, 2, 3):
        Image.new("RGB", (50, 40), (80 * number, 10, 10)).save(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg")
        ids = {"image_id": number, "question_id": number * 10}
        questions.append({**ids, "question": "What colour is it?"})
        answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)]
        kinds = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": "red"}
        annotations.append({**ids, **kinds, "answers": answers})
        lessons.append(
            {
                "id": str(number),
                "image": f"val2014/COCO_val2014_{number:012d}.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": "a plate"},
                ],
            }
        )
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    files = {
        "v2_OpenEnded_mscoco_val2014_questions.json": {**head, "task_type": "Open-Ended", "questions": questions},
        "v2_mscoco_val2014_annotations.json": {**head, "annotations": annotations},
        "llava_v1_5_mix665k.json": lessons,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_vqav2_in_its_official_files_taught_by_llavas(vqav2, tmp_path):
    args = ["vqa", "--encoder=random:timm:test_vit[img_size=32]", "--task=vqav2", f"--data={vqav2}"]
    args += [f"--taught_data={vqav2}", f"--taught_images={vqav2}", *SMALL, *outputs(tmp_path)]
    assert main(args) == 0
    (row,) = [row for row in read(tmp_path / "results.jsonl") if row.metric.startswith("vqa")]
    assert (row.dataset, row.split, row.n, row.synthetic) == ("vqav2", "val", 3, False)
    kept = json.loads(next((tmp_path / "evals").rglob("answers_vqav2*.jsonl")).read_text().splitlines()[0])
    assert kept["question"] == "What colour is it?"
    assert "Answer the question using a single word or phrase." in kept["prompt"]


def test_the_published_recipe_is_read(vqav2, tmp_path, capsys):
    """All of configs/evals/vqa_llava.yaml but the language model, which is out of reach, and the sizes."""
    args = [
        "vqa",
        "--config=configs/evals/vqa_llava.yaml",
        "--encoder=random:timm:test_vit[img_size=32]",
        "--task=vqav2",
    ]
    args += [
        f"--data={vqav2}",
        f"--taught_data={vqav2}",
        f"--taught_images={vqav2}",
        "--lm.name=small",
        "--img_size=32",
    ]
    args += [*SMALL, "--train.accumulate=2", "--num_workers=0", *outputs(tmp_path)]
    assert main(args) == 0
    (row,) = [row for row in read(tmp_path / "results.jsonl") if row.metric.startswith("vqa")]
    assert row.details["taught"] == "llava"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["vqa", "--task=vqa2"], "'vqa2' is unknown; give one of"),
        (["vqa", "--data=/nowhere"], "name what lies there with --task, one of"),
        (["vqa", "--task=vqav2", "--data=/nowhere", "--encoder=random:timm:test_vit"], "/nowhere"),
        (["vqa", "--route=probe"], "--route='probe' is unknown; there are connector, decoder, decoder_frozen"),
        (["vqa", "--pictures=disk"], "--pictures='disk' is unknown; there are cached and online"),
        (["vqa", "--train.lr=-1"], "train.lr=-1.0 must be above 0"),
        (["vqa", "--train.rate=1"], "rate"),
        (["vqa", "--task=vqav2", "--task=scenes_object"], "name --taught"),
        (["vqa", "--lm.name=./nowhere", "--encoder=random:timm:test_vit"], "the folder './nowhere' does not exist"),
        (["caption", "--task=flicker"], "'flicker' is unknown; give one of"),
        (["caption", "--generation.num_beams=2", "--generation.temperature=1.0"], "samples, which beams do not"),
    ],
)
def test_bad_input_is_one_line(args, line, tmp_path, capsys):
    assert main([*args, *outputs(tmp_path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in error
    assert error.startswith("error: ")
