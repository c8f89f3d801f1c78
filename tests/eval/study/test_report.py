"""The study's page and study.json: what they say, and that they need nothing else."""

from __future__ import annotations

import json
import re
import resource

import numpy as np
import pytest

from eval.metrics import seeds
from eval.report import figures
from eval.sets import catalog
from eval.study.findings import finished, page, report
from eval.study.findings.analysis import Analysis
from eval.study.findings.report import ArmRuns
from tests.kits import eval_study as kit
from tests.kits.eval_runs import change
from tests.kits.html import whole

pytestmark = pytest.mark.slow  # whole studies and pages


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> list[ArmRuns]:
    """Two groups: one of every role, and one with a single seed."""
    root = tmp_path_factory.mktemp("study")
    many, one, others = range(7), [0], [0, 1, 2, 3, 4, 5, 7]
    return [
        kit.arm(root, "Baseline", many, kit.steady(0.30), "baseline", group="ViT", missing=1),
        kit.arm(root, "PI", others, kit.steady(0.33, luck=1), "subject", group="ViT", dose=1.0),
        kit.arm(root, "PI, shuffled", many, kit.steady(0.30, luck=2), "control", group="ViT"),
        kit.arm(root, "1 %", many, kit.steady(0.31, luck=3), "dose", group="ViT", dose=0.01, series="epochs"),
        kit.arm(root, "10 %", many, kit.steady(0.32, luck=4), "dose", group="ViT", dose=0.1, series="epochs"),
        ArmRuns(label="later", runs=[], role="prior", group="ViT", missing=6),
        kit.arm(root, "PI", one, kit.steady(0.28), "subject", group="RN"),
        kit.arm(root, "Baseline", one, kit.steady(0.30), "baseline", group="RN"),
    ]


@pytest.fixture(scope="module")
def written(arms) -> tuple[str, dict]:
    out = arms[0].runs[0].parents[1] / "deep" / "report"
    report.write("controls", "What the votes add.", arms, out)
    assert {path.name for path in out.iterdir()} == {"index.html", "study.json"}

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (out / "study.json").read_text(encoding="utf-8")
    return (out / "index.html").read_text(encoding="utf-8"), json.loads(text, parse_constant=refuse)


def _plain(text: str) -> str:
    """The page's words, without its markup."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def test_the_whole_page(written):
    text, _ = written
    assert whole(text)
    words = _plain(text)
    for said in (
        "controls", "What the votes add.", "PI is better than Baseline: +2", "over 6 paired seeds",
        "Not counted: seed 7, not finished by Baseline; seed 6, not finished by PI",
        "Baseline: 1 seed not finished", "later: no finished run", "PI minus PI, shuffled: +",
        "in one seed, which says nothing about chance", "Spread over seeds", "unpaired",
        "How many seeds a difference needs", "Learning speed", "Dose–response", "Scaling",
        "per tenfold of triplets (epochs), over 6 seeds", "Settings the runs share",
        "near chance, where a slope means nothing: PCAM", "Retrieval examples", "Beside the paper",
        "Of each arm one seed is shown above", "PI, shuffled against Baseline, set by set",
        "Scaling curves of every set", "More retrieval answers", "image_retrieval_recall@10",
        "text_retrieval_median_rank", "right answer at rank", "&lt;b&gt;",
    ):  # fmt: skip
        assert said in words, said
    assert "nan" not in words and "None" not in words and "inf " not in words


def test_the_page_is_the_same_again(arms, written):
    again = arms[0].runs[0].parents[1] / "deep" / "again"
    report.write("controls", "What the votes add.", arms, again)
    clock = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert clock.sub("", (again / "index.html").read_text()) == clock.sub("", written[0])
    assert json.loads((again / "study.json").read_text()) == written[1]


def test_study_json_has_every_seed_and_what_came_of_it(arms, written):
    _, data = written
    vit, rn = data["groups"]
    assert [arm["label"] for arm in vit["arms"]] == ["PI", "Baseline", "PI, shuffled", "1 %", "10 %", "later"]
    assert vit["arms"][0]["runs"]["7"] == "../../ViT-PI/7"
    pair = vit["against_baseline"][0]
    assert pair["seeds"] == [0, 1, 2, 3, 4, 5] and pair["not_counted"] == {"PI": [7], "Baseline": [6]}
    mean = pair["figures"]["mean:Mean of the sets/acc1"]
    d = np.subtract(mean["arm"], mean["against"])
    assert mean["difference"]["value"] == pytest.approx(d.mean())
    assert (
        mean["difference"]["p"] == pytest.approx(seeds.sign_flip(d))
        and mean["difference"]["least_p"] == 1 / 32
    )
    assert {need["paired"] for need in pair["seeds_needed"]} == {True, False}
    found = vit["seed_variance"]["Baseline"]["cifar10/mean_per_class_recall"]
    assert len(found["values"]) == 7 and found["sd"]["value"] == pytest.approx(
        np.std(found["values"], ddof=1)
    )
    assert [c["arm"] for c in vit["against_controls"]] == ["PI"] and vit["learning_speed"][0]["arm"] == "PI"
    assert vit["dose_response"][0]["slope_seeds"] == [0, 1, 2, 3, 4, 5]
    curve = vit["scaling"][0]["arms"]["PI"]
    assert np.shape(curve["by_seed"]) == (7, 4) and len(curve["beta_by_seed"]) == 7
    titles = [chart["title"] for chart in vit["scaling"]]
    assert "VTAB, top-5" in titles and "CIFAR-10, top-1" in titles  # families and sets
    alone = rn["against_baseline"][0]["figures"]["cifar10/acc1"]["difference"]
    assert alone["count"] == 1 and alone["low"] is None and alone["sd"]["value"] is None


def test_every_figure_of_the_page_is_in_the_json(written):
    """The table of arms, row by row."""
    text, data = written
    table = text[text.index("<h2>Arms") : text.index("</table>")]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]]
    assert len(rows) == 5
    for row, pair in zip(rows, data["groups"][0]["against_baseline"]):
        cells = [_plain(cell).strip() for cell in row]
        d = pair["figures"]["mean:Mean of the sets/acc1"]["difference"]
        assert cells[0] == pair["arm"] and cells[2] == str(d["count"])
        shown = [f"{100 * d[name]:+.2f}".replace("-", "−") for name in ("value", "low", "high")]
        assert [cells[5], *cells[6].split(" to ")] == shown


def test_names_are_text_wherever_they_stand(tmp_path):
    name = 'A"><script>x</script>'
    made = [kit.arm(tmp_path, str(i), range(3), kit.steady(0.3, luck=i)) for i in range(2)]
    named = [
        ArmRuns(label=name, runs=made[0].runs, group="<b>", role="dose", dose=0.1, series="<i>"),
        ArmRuns(label="B", runs=made[1].runs, group="<b>", role="baseline"),
    ]
    report.write("<u>", "<s>", named, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert whole(text) and not re.search("<(b|i|u|s)>", text)


def test_nothing_is_written_unless_all_is(arms, tmp_path):
    with pytest.raises(ValueError, match="no run of the study is finished"):
        report.write("x", "", [ArmRuns(label="A", runs=[], missing=2)], tmp_path / "out")
    broken = kit.arm(tmp_path, "A", [0, 1], kit.steady(0.3), "baseline")
    pi = kit.arm(tmp_path, "PI", [0, 1], kit.steady(0.3), "subject")
    npz = broken.runs[0] / "eval" / "step-000080" / "predictions" / "mscoco_captions.npz"
    npz.write_bytes(npz.read_bytes()[:100])
    with pytest.raises(ValueError, match="mscoco_captions.npz: damaged"):
        report.write("x", "", [broken, pi], tmp_path / "out")
    (broken.runs[1] / "eval" / "step-000040" / "results.json").write_text('{"schema": 1')
    with pytest.raises(ValueError, match="not whole JSON"):
        report.write("x", "", [broken, pi], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whose_votes_they_are(tmp_path):
    """Said at every 2AFC, also where the first arm was never asked."""
    made = {"edit": lambda data: data["triplets"].update(votes="constructed")}
    roles = {"PI": "subject", "B": "baseline", "C": "control"}
    arms = [kit.arm(tmp_path, n, range(3), kit.steady(0.3), r, made=made) for n, r in roles.items()]
    without = kit.arm(tmp_path, "S", range(3), kit.steady(0.3), "subject", made={"triplets": False})
    report.write("x", "", [without, *arms], tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert whole(text) and text.count('<span class="label">constructed, no human vote</span>') == 2


@pytest.mark.parametrize("baseline", [None, []])
def test_without_a_baseline(tmp_path, baseline):
    arms = [kit.arm(tmp_path, "PI", range(3), kit.steady(0.3), "subject")]
    arms += [] if baseline is None else [ArmRuns(label="B", runs=[], role="baseline", missing=3)]
    report.write("x", "", arms, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert whole(text) and "No run of a baseline is finished, so nothing is compared." in text
    assert "Spread over seeds" in text and "Scaling" in text


def test_one_checkpoint_of_one_set_of_one_seed(tmp_path):
    made = {"sets": ["cifar10"], "steps": (10,), "triplets": False}
    roles = {"PI": "subject", "B": "baseline", "C": "control"}
    arms = [kit.arm(tmp_path, n, [3], kit.steady(0.3), r, made=made) for n, r in roles.items()]
    report.write("x", "", arms, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert (
        whole(text) and "Learning speed" not in text and "Scaling" not in text and "nan" not in _plain(text)
    )


def test_the_appendix_shows_other_queries(arms):
    part = page.Part(Analysis(finished.groups(arms)[0], 0))
    first, more = part.retrieval(), part.retrieval(more=True)
    assert [p.title for p in first] == [p.title for p in more] and len(first) == 2
    for one, other in zip(first, more):
        assert [kind.count for kind in one.kinds] == [kind.count for kind in other.kinds]
        for a, b in zip(one.kinds, other.kinds):
            assert not {*a.shown} & {*b.shown} and len(b.shown) == min(page.MORE, max(0, a.count - 2))


def test_seeds_that_differ_in_more_than_the_seed_are_named(tmp_path):
    arm = kit.arm(tmp_path, "A", range(2), kit.steady(0.3), "baseline")
    final = arm.runs[1] / "eval" / "step-000080"
    change(final, lambda data: data["recipe"]["optim"].update(lr=0.2))
    report.write("x", "", [arm], tmp_path / "out")
    assert "The seeds of A also differ in optim.lr." in (tmp_path / "out" / "index.html").read_text()


def test_lines_of_many_arms_differ_without_colour():
    looks = [figures._look(number) for number in range(12)]
    assert len({(look["marker"], str(look["linestyle"])) for look in looks}) == 12


@pytest.mark.slow
def test_a_large_study(tmp_path):
    """A twelfth of the largest, which may take 2 GB: all 31 sets, 32 checkpoints, texts of some length."""
    sets = [entry.key for entry in catalog.PAPER]
    steps = [*range(10, 330, 10)]
    made = {"sets": sets, "steps": steps, "texts": 20}
    arms = [
        kit.arm(tmp_path, name, range(6), kit.steady(0.3, luck=i), role, made=made)
        for i, (name, role) in enumerate(
            {"PI": "subject", "B": "baseline", "C": "control", "D": "", "E": ""}.items()
        )
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report.write("x", "", arms, tmp_path / "out")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6  # of kB
    assert grown < 0.7 and (tmp_path / "out" / "index.html").stat().st_size < 5e6
