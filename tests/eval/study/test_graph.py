"""A study as jobs: what is shared, what a training is, what a user may get wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.study import cost, graph, studies
from eval.study.graph import Setting, build
from eval.study.studies import Arm, Study, Training
from tests.kits import train as kit
from train import command, plan

FIRST = Training(stage=1, recipe="debug", flags={"steps": "6"})
SECOND = Training(stage=2, recipe="debug", flags={"steps": "8"})
BASELINE = Arm(label="Baseline", chain=(SECOND,), role="baseline")
PI = Arm(label="PI", chain=(FIRST, SECOND), role="subject")


def jobs(*arms: Arm, seeds: int = 1, sets: tuple[str, ...] = (), **study):
    made = Study(name="s", description="", arms=arms or (BASELINE, PI), **study)
    return build(made, seeds, Path("/out"), [Setting.parse(text) for text in sets])


def kinds(made) -> dict[str, int]:
    found = [job.kind for job in made.jobs.values()]
    return {kind: found.count(kind) for kind in dict.fromkeys(found)}


def test_each_training_is_done_once():
    """One baseline and one stage 1 a seed, whatever needs them; jobs come after those they need."""
    again = Arm(label="PI with another rate", chain=(FIRST, SECOND.with_flags(lr="1e-3")))
    made = jobs(BASELINE, PI, again, seeds=2)
    assert kinds(made) == {"train": 8, "evaluate": 6, "report": 1}
    starts = {job.after[0] for job in made.trainings if job.after}
    assert len(starts) == 2 and all("stage1" in name for name in starts)
    seen: set[str] = set()
    for name, job in made.jobs.items():
        assert seen >= set(job.after)
        seen.add(name)


def test_a_study_grows_without_doing_anything_anew():
    few, many = jobs(BASELINE, seeds=1), jobs(BASELINE, PI, seeds=3)
    for name, job in few.jobs.items():
        assert job.kind == "report" or many.jobs[name] == job


def test_the_command_of_a_job_is_its_recipe():
    """What `train.launch` reads from it, and what the plan and SLURM take from the graph."""
    for job in jobs(BASELINE, PI, seeds=2, sets=("stage1.margin=0.2", "log-every=3")).trainings:
        assert job.arguments[:2] == ("-m", "train.launch")
        assert command.parse_stage(job.arguments[2:]).recipe == job.recipe
        assert getattr(job.recipe, "margin", 0.2) == 0.2 and job.recipe.saving.log_every == 3


FREE = {"run": Path("elsewhere"), "init": Path("there")}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    lr=st.floats(1e-5, 1e-1), other=st.floats(1e-5, 1e-1), workers=st.integers(1, 9), keep=st.integers(1, 9),
    parent=st.sampled_from(["", "a", "b"]), seed=st.integers(0, 3),
)  # fmt: skip
def test_what_identifies_a_training(lr, other, workers, keep, parent, seed):
    """Its numbers and where it starts; neither machines nor how often it is saved."""
    recipe = replace(command.parse_stage(["--stage", "2", "--recipe", "debug"]).recipe, seed=seed)

    def name(lr, workers=1, keep=2, parents=(parent,), **changes):
        made = replace(recipe, optim=replace(recipe.optim, lr=lr), **changes)
        made = replace(made, data=replace(made.data, workers=workers), saving=replace(made.saving, keep=keep))
        return graph.identity(made, parents, Path("/out"))

    assert name(lr) == name(lr, workers, keep, **FREE)
    assert (name(lr) == name(other)) == (lr == other)
    assert name(lr) != name(lr, parents=("c",)) and name(lr) != name(lr, seed=seed + 1)


def test_votes_decide_a_training():
    made = [Arm(label=v, chain=(FIRST.with_flags(votes=v), SECOND)) for v in ("shuffled", "human")]
    assert kinds(jobs(*made, PI))["train"] == 4  # human is what PI has


def test_data_is_part_of_a_training():
    moved = SECOND.with_flags(data="another.beton")
    assert jobs(BASELINE).trainings[0].name != jobs(replace(BASELINE, chain=(moved,))).trainings[0].name


@pytest.mark.parametrize(
    "data, elsewhere", [("/home/me/p/data/x", "/scratch/data/x"), ("/sets/x", "/sets/x")]
)
def test_a_training_keeps_its_name_where_the_study_is_moved(data, elsewhere):
    """With its data, or with data that lie apart from both."""

    def name(out: str, path: str) -> str:
        made = Study(
            name="s", description="", arms=(replace(BASELINE, chain=(SECOND.with_flags(data=path),)),)
        )
        return build(made, 1, Path(out)).trainings[0].name

    first = name("/home/me/p/runs/study", data)
    assert name("/scratch/runs/study", elsewhere) == first != name("/scratch/runs/study", elsewhere + "2")


def test_as_many_steps_as_another(tmp_path):
    """Of a file that is there its own samples; a share of the steps has that share of the warm-up."""
    file = kit.triplets(tmp_path / "t.beton", 48)
    flags = {"data": str(file), "steps": "0", "epochs": "10", "warmup-steps": "5"}
    like = Training(stage=1, recipe="debug", flags=flags)  # 48 / 16 × 10
    part = Training(
        stage=1, recipe="debug", flags={"data": str(file), "fraction": "0.5"}, like=like, share=0.4
    )
    (job,) = [j for j in jobs(Arm(label="a", chain=(part, SECOND))).trainings if j.recipe.stage == 1]
    assert (job.recipe.steps, job.recipe.optim.warmup_steps, job.recipe.data.fraction) == (12, 2, 0.5)


def test_an_untrained_network_votes_once_for_all_that_learn_it():
    arms = [
        Arm(label=f"{lr}", chain=(FIRST.with_flags(votes=studies.UNTRAINED, lr=lr), SECOND))
        for lr in ("1e-3", "2e-3")
    ]
    made = jobs(*arms, seeds=2)
    assert kinds(made)["votes"] == 2
    for job in made.trainings:
        if job.recipe.stage == 1:
            (votes,) = (made.jobs[name] for name in job.after)
            assert job.arguments[job.arguments.index("--votes") + 1] == str(votes.votes) == job.recipe.votes
            network = int(votes.arguments[votes.arguments.index("--seed") + 1])
            assert network == job.recipe.seed + graph.ANOTHER  # not the one that learns


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "demo", "debug"])
@pytest.mark.parametrize("name", studies.READY)
def test_the_ready_studies(name, recipe):
    """Every arm of every recipe has a command that is read, and labels that differ."""
    made = build(studies.ready(name, recipe), 1, Path("/out"))
    roles = {arm.role for arm in made.study.arms}
    assert {"baseline", "subject"} <= roles
    assert kinds(made)["evaluate"] == len(made.study.arms)
    if recipe == "demo":
        assert made.study.build and made.study.data is not None


@pytest.mark.slow
def test_controls_differ_from_pi_in_one_thing():
    """The same steps and, of pictures, the same number a step; so the same compute."""
    made = build(studies.ready("controls", "demo"), 1, Path("/out"))
    first = {}
    for arm in made.study.arms[1:]:
        final = made.jobs[made.jobs[made.finals[arm.label][0]].after[0]]
        first[arm.label] = next(made.jobs[n] for n in final.after if "stage1" in n).recipe
    pi = first.pop("PI")
    for label, recipe in first.items():
        assert recipe.total_steps(1738) == pi.total_steps(1738)
        assert recipe.batch * recipe.images * recipe.views == pi.batch * pi.images
        assert recipe.optim == pi.optim and recipe.data == pi.data, label


@pytest.mark.slow
def test_a_plan_counts_what_there_is_to_do(tmp_path):
    elsewhere = {"data": str(tmp_path / "x.beton")}
    made = jobs(BASELINE, replace(PI, chain=(FIRST.with_flags(**elsewhere), SECOND)), seeds=2)
    text = "\n".join(cost.lines(made, plan.Machine(ngpus=1)))
    assert "2 arms × 2 seeds" in text and "6 links of chains, 6 different, 0 done" in text
    assert "not estimated" in text and "not there yet" in text


def test_checkpoints_that_are_kept():
    recipe = command.parse_stage(["--stage", "2", "--recipe", "paper", "--keep-epochs", "4"]).recipe
    assert cost.checkpoints(recipe, 15_061_515) == 2 + 8
    debug = command.parse_stage(["--stage", "2", "--recipe", "debug", "--steps", "4"]).recipe
    assert cost.checkpoints(debug, 1000) == 1


@pytest.mark.parametrize(
    "text", ["epochs", "=3", "a.b=3", "seed=1", "stage1.run=x", "stage3.epochs=1", "--init=there"]
)
def test_settings_that_cannot_be(text):
    with pytest.raises(ValueError, match="--set"):
        Setting.parse(text)


def test_studies_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="there are paper"):
        studies.read("papers", None)
    with pytest.raises(ValueError, match="two arms are called 'PI'"):
        Study(name="x", description="", arms=(PI, PI))
    for name in ("a/b", "", "runs", ".."):
        with pytest.raises(ValueError, match="its name is a folder's"):
            Study(name=name, description="", arms=(PI,))
    for text, said in (("1/0", "ZeroDivisionError"), ("STUDY = 3", "has no STUDY"), ("", "has no STUDY")):
        file = tmp_path / "mine.py"
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            studies.read(str(file), None)
    with pytest.raises(ValueError, match="unrecognized|Unrecognized"):
        jobs(replace(BASELINE, chain=(SECOND.with_flags(nonsense="1"),)))


def test_a_study_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from eval.study.studies import *\n"
        "arm = Arm(label='a', chain=(Training(stage=2, recipe='debug'),))\n"
        "STUDY = Study(name='mine', description='', arms=(arm,), seeds=5)\n"
    )
    assert studies.read(str(file), None).seeds == 5
    with pytest.raises(ValueError, match="--recipe"):
        studies.read(str(file), "demo")


def test_evaluations_read_what_the_study_holds_out(tmp_path):
    made = jobs(BASELINE, data=tmp_path / "sets", alignment=tmp_path / "similarity")
    (job,) = (job for job in made.jobs.values() if job.kind == "evaluate")
    words = " ".join(job.arguments)
    assert f"--data {tmp_path / 'sets'}" in words and f"--alignment {tmp_path / 'similarity'}" in words
    assert "--triplets" not in words
