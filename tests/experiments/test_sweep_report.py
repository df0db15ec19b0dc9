"""The report of a sweep in any state: a page, figures and tables."""

import csv
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from sweeps import FAU, make_sweep, record, write_run

from rlearly import report
from rlearly.core.errors import ConfigError
from rlearly.experiments.job import log_of
from rlearly.experiments.plan import Plan, Run
from rlearly.experiments.report import figures
from rlearly.experiments.report.curves import Curve, read_curves, summary, write_curves
from rlearly.experiments.report.plotting import save_figure
from rlearly.experiments.report.results import SweepResults
from rlearly.experiments.report.sweep_report import load, write
from rlearly.experiments.report.tables import Table, tables

VOID = {"meta", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """A page with balanced tags: its text, headings, ids and links."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.headings, self.ids, self.images = [], [], [], [], []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag == "svg":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data


def check(out):
    """The page of a report, checked: its links, ids, headings and figures."""
    text = (out / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "http://" not in text and "https://" not in text and "<script" not in text
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (out / unquote(link)).exists(), link
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    steps = np.diff(page.headings)
    assert steps.max(initial=0) <= 1, "no level of headings is skipped"
    for image in page.images:
        assert image["role"] == "img"
        assert all(name in page.ids for name in image["aria-labelledby"].split())
    return page


def curves(arm, finals, env="e", low=0.0, **kind):
    """A curve for each final score, from `low`."""
    frames = np.array([10, 20, 30, 40])
    return [
        Curve(arm, env, seed, frames, np.array([low, final, final, final]), **kind)
        for seed, final in enumerate(finals)
    ]


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """The report of 6 arms on 3 envs with 5 seeds; three runs have not finished."""
    sweep = tmp_path_factory.mktemp("rich")
    arms = ["TD3", "S3RL+TD3", "drm replay_ratio=2", "SAC & <b>co</b>", "DrM_1", "x" * 60]
    make_sweep(
        sweep, arms, ["dog_run", "Hopper-v5", "ALE/Pong-v5"], 5, published={"dog_run": {"TD3": 777}}
    )
    runs = {(run.arm, run.env, run.seed): run for run in Plan.load(sweep).runs}
    going, failed, waiting, broken = (
        runs[key]
        for key in (
            ("TD3", "dog_run", 4),
            ("TD3", "Hopper-v5", 3),
            ("DrM_1", "dog_run", 2),
            ("SAC & <b>co</b>", "dog_run", 1),
        )
    )
    for run in (going, waiting, broken):
        shutil.rmtree(sweep / run.name)
    (sweep / failed.name / "done.json").unlink()
    write_run(sweep / going.name, "dog_run", [900] * 7, done=False, family="dm_control")
    write_run(sweep / broken.name, "dog_run", [3] * 20, family="dm_control")
    record(sweep, going, "running", 60)
    record(sweep, failed, "failed", 60)
    log_of(sweep, failed.name).write_text("rlearly: first\nMuJoCoError: <NaN>\n", encoding="utf-8")
    (sweep / "jobs" / f"{waiting.name}.json").unlink()
    (sweep / going.name / "videos").mkdir()
    (sweep / going.name / "videos" / "eval_7.mp4").write_bytes(b"")
    assert report.main([f"sweep={sweep}"]) == 0
    return sweep


def test_page_is_complete_and_names_unfinished_runs(rich):
    page = check(rich / "report")
    assert "87 of 90 runs have finished" in page.words
    assert "1 running: TD3 on dog_run, seed 4 (7,000 frames)" in page.words
    assert "seed 3 (20,000 frames; last log line: MuJoCoError: <NaN>)" in page.words
    assert "1 waiting: DrM_1 on dog_run, seed 2" in page.words
    assert "done, broken" in page.words
    assert "SAC & <b>co</b>" in page.words, "names are text, not tags"
    assert len(page.images) == 7
    assert any(link.endswith("eval_7.mp4") for link in page.links)
    assert "return / 1000 on dog_run; from the lowest return" in page.words
    assert f"python -m rlearly.report sweep={rich}" in page.words


@pytest.mark.cluster
def test_page_opens_in_a_browser_without_a_complaint(rich, tmp_path):
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium here")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]
    shot = tmp_path / "page.png"
    flags += [f"--user-data-dir={tmp_path / 'user'}", f"--screenshot={shot}"]
    page = (rich / "report" / "index.html").as_uri()
    done = subprocess.run(
        [chromium, *flags, "--enable-logging=stderr", "--window-size=1200,4000", page],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    from matplotlib import image

    pixels = image.imread(shot)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 200, "figures are drawn"


def test_success_rates_are_drawn_and_tabulated_for_finished_runs(tmp_path):
    runs = [Run(arm, "metaworld/soccer", seed, []) for arm in ("DrM", "DrQ") for seed in range(4)]
    Plan("Goals", runs).save(tmp_path)
    for run in runs:
        last = 0.1 * run.seed + (0.5 if run.arm == "DrM" else 0.0)
        done = (run.arm, run.seed) != ("DrQ", 3)
        rates = [0.0, last - 0.05, last, last + 0.05]
        write_run(tmp_path / run.name, run.env, [1, 2, 3, 4], done=done, success_rates=rates)
        record(tmp_path, run, "done" if done else "running", 60)
    assert report.main([f"sweep={tmp_path}"]) == 0
    page = check(tmp_path / "report")
    assert "Success rates" in page.words
    assert (tmp_path / "report" / "figures" / "success.png").exists()
    with (tmp_path / "report" / "tables" / "success.csv").open(
        newline="", encoding="utf-8"
    ) as stream:
        drm, drq = csv.DictReader(stream)
    assert (drm["arm"], drm["finished"], drm["each seed"]) == ("DrM", "4 of 4", "0.5 0.6 0.7 0.8")
    assert drm["final IQM [95 %]"].startswith("0.65 [") and drm["best evaluation"] == "0.85"
    assert (drq["finished"], drq["each seed"]) == ("3 of 4", "0 0.1 0.2")
    kept = (tmp_path / "report" / "metrics.csv").read_text(encoding="utf-8")
    assert "DrM,metaworld/soccer,0,eval/success_rate,2000,0.45" in kept


def test_figures_and_tables_are_files_too(rich):
    out = rich / "report"
    for name in ("curves", "final", "pooled", "profiles", "improvement", "metrics", "cost"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in ("final", "efficiency", "pooled", "improvement", "cost"):
        with (out / "tables" / f"{name}.csv").open(encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
        assert len({len(row) for row in rows}) == 1 and len(rows) > 1
        tex = (out / "tables" / f"{name}.tex").read_text(encoding="utf-8")
        assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 1
        assert tex.count("\\\\\n") == len(rows)
    final = (out / "tables" / "final.csv").read_text(encoding="utf-8")
    assert next(line for line in final.splitlines() if "dog_run,TD3" in line).endswith(",777")
    again = read_curves(out / "curves.csv")
    assert len(again) == 89 and all(FAU in curve.metrics for curve in again)


def test_final_scores_are_of_finished_runs_only(rich):
    found = load(rich)
    assert (
        len(found.final_scores("dog_run")["TD3"]) == 4
        and found.final_scores("dog_run")["TD3"].max() < 400
    )
    assert len(found.members["dog_run", "TD3"]) == 5
    assert [c.seed for c in found.broken("dog_run", "SAC & <b>co</b>")] == [1]


def test_comparison_has_its_own_label(rich, tmp_path, capsys):
    (tmp_path / "paper.csv").write_text(
        "arm,env,frames,return\nDrM,dog_run,0,1\nDrM,dog_run,20000,700\nDrM,elsewhere,1,1\n",
        encoding="utf-8",
    )
    other = make_sweep(tmp_path / "other", ["TD3"], ["dog_run"], 3, points=5)
    out = tmp_path / "out"
    arguments = [f"sweep={rich}", f"compare={tmp_path / 'paper.csv'},{other}", f"out={out}"]
    assert report.main([*arguments, "threshold=500"]) == 0
    page = check(out)
    assert "DrM (paper)" in page.words and "TD3 (other)" in page.words
    assert "elsewhere" not in page.words.split("Methods")[0]
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(out / "index.html")
    found = load(rich, [tmp_path / "paper.csv", other])
    assert "DrM (paper)" not in found.final_scores("dog_run"), (
        "one line without seeds has no interval"
    )
    assert len(found.final_scores("dog_run")["TD3 (other)"]) == 3


def test_published_curve_is_in_the_tables_up_to_its_last_frames(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", ["a"], ["dog_run"], 3)
    text = "arm,env,frames,return\nP,dog_run,0,1\nP,dog_run,3000,70\n"
    (tmp_path / "short.csv").write_text(text, encoding="utf-8")
    results = load(sweep, [tmp_path / "short.csv"], threshold=60)
    final, efficiency, *_ = tables(results)
    row = next(row for row in final.rows if row[1] == "P (short)")
    assert row[2:4] == ["a curve", "70 at 3,000 frames"] and len(row) == len(final.columns)
    write(results, tmp_path / "out", "x")
    assert "A published curve is already a mean over seeds" in check(tmp_path / "out").words
    assert ["dog_run", "P (short)", "60", "a curve", "3,000"] in efficiency.rows
    efficiency = tables(load(sweep, [tmp_path / "short.csv"], threshold=80))[1]
    assert ["dog_run", "P (short)", "80", "a curve", "not reached in 3,000"] in efficiency.rows


def test_under_three_seeds_have_no_interval(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    monkeypatch.setattr(Axes, "fill_between", lambda *a, **k: pytest.fail("a band was drawn"))
    sweep = make_sweep(tmp_path / "two", ["only"], ["dog_run", "dog_walk"], 2)
    assert report.main([f"sweep={sweep}"]) == 0
    page = check(sweep / "report")
    assert "(mean of 2 seeds); an interval needs at least 3 finished seeds" in page.words
    assert "no clear difference" not in page.words
    rows = tables(load(sweep))[0].rows
    assert "[2 seeds: " in rows[0][3]
    with (sweep / "report" / "table.csv").open(encoding="utf-8") as stream:
        assert {(row["final_low"], row["area_high"]) for row in csv.DictReader(stream)} == {
            ("", "")
        }
    pooled = next(table for table in tables(load(sweep)) if table.name == "pooled")
    assert pooled.rows[0][2].endswith("[under 3 seeds]")


def test_legend_names_only_what_is_drawn_and_every_panel_has_its_label(tmp_path):
    arms = ["drawn", "waiting"]
    sweep = make_sweep(tmp_path / "s", arms, [f"dog_{n}" for n in range(5)], 1, points=4)
    for run in Plan.load(sweep).runs:
        if run.arm == "waiting":
            shutil.rmtree(sweep / run.name)
    seen = {}

    def save(figure, path):
        legends = [text.get_text() for one in figure.legends for text in one.get_texts()]
        labels = [axes.get_xlabel() for axes in figure.axes if axes.get_visible()]
        seen[path.stem] = legends, labels
        save_figure(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", save)
        assert report.main([f"sweep={sweep}"]) == 0
    for name in ("curves", "metrics", "profiles"):
        assert seen[name][0] == ["drawn"]
    assert seen["curves"][1] == ["simulator frames"] * 5


def test_page_explains_the_threshold_and_the_replay_ratio(tmp_path, capsys):
    sweep = make_sweep(tmp_path / "s", ["a"], ["dog_run"], 3, points=4)
    found = load(sweep)
    ratio = {"train/replay_ratio": (np.array([1, 2]), np.array([0.0, 0.5]))}
    curves = [replace(curve, metrics=ratio) for curve in found.curves]
    write(replace(found, curves=curves, metrics=list(ratio)), tmp_path / "out", "x")
    words = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8")).words
    assert "train/replay_ratio is 0 while actions are still random" in words
    rule = "80% of the way from the lowest return of any evaluation on that env (0 for dm_control)"
    assert words.count(rule) == 2, "beside the table, and in how it was computed"
    report.main(["--help"])
    assert "80 % of the way from the lowest return" in capsys.readouterr().out


def test_sweep_without_evaluations_says_so(tmp_path, capsys):
    sweep = make_sweep(tmp_path / "sweep", ["a", "b"], ["dog_run"], 1, points=0)
    assert report.main([f"sweep={sweep}"]) == 0
    assert "No run has an evaluation yet" in capsys.readouterr().out
    page = check(sweep / "report")
    assert "No run has an evaluation yet" in page.words
    assert "dog_run: no run has finished with an evaluation" in page.words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sweep={at}/no"], "is not the directory of a sweep"),
        (["out={at}/x"], "received none of them"),
        (["sweep={at}/s", "run={at}/s"], "received run and sweep"),
        (["sweep={at}/s", "compare={at}/no.csv"], "no.csv; name a CSV file of curves or"),
        (["sweep={at}/s", "compare={at}/bad.csv"], "as a study's curves (it has a, b); expected"),
        (["sweep={at}/s", "compare={at}/bad.csv"], "expected the columns arm, env"),
        (["sweep={at}/s", "compare={at}/far.csv"], "compare: expected curves on dog_run"),
        (["sweep={at}/s", "out={at}/bad.csv"], "cannot be written"),
        (["run={at}/s", "threshold=3"], "threshold: only sweep= takes it"),
    ],
)
def test_bad_requests_get_one_sentence(tmp_path, capsys, arguments, sentence):
    make_sweep(tmp_path / "s", ["a"], ["dog_run"], 1, points=2)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "far.csv").write_text("arm,env,frames,return\na,elsewhere,1,1\n", encoding="utf-8")
    assert report.main([text.format(at=tmp_path) for text in arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("rlearly: ") and sentence in said.err and said.err.count("\n") == 1


def test_conclusion_claims_no_more_than_the_intervals():
    high, low = [9.0, 10.0, 10.0, 11.0], [1.0, 2.0, 2.0, 3.0]

    def said(*groups):
        return SweepResults("t", [c for group in groups for c in group]).conclusion("e")

    assert "A scores highest" in said(curves("A", high), curves("B", low))
    assert "clearly above B." in said(curves("A", high), curves("B", low))
    assert "no clear difference" in said(curves("A", high), curves("B", [8.0, 9.0, 11.0, 12.0]))
    both = said(curves("A", high), curves("B", low), curves("C", [9.0, 9.5, 10.0, 10.5]))
    assert "clearly above B; no clear difference from C." in both
    two = said(curves("A", [100.0, 101.0]), curves("B", low))
    assert "Too few seeds (under 3) to judge A" in two and "clearly" not in two
    assert "no run has finished" in said(curves("A", high, finished=False))


def test_few_runs_have_no_chance_of_improvement():
    four = curves("A", [1.0, 2.0, 3.0, 4.0])
    found = SweepResults("t", [*four, *curves("B", [9.0, 9.0]), *curves("C", [2.0, 5.0, 6.0])])
    assert list(found.improvements()) == ["C"]
    (chance, low, high), envs = found.improvements()["C"]
    assert chance == pytest.approx((1.5 + 4 + 4) / 12) and low <= chance <= high and envs == 1


def test_scores_are_normalised_env_by_env():
    found = SweepResults(
        "t",
        [
            *curves("A", [500.0, 250.0], "dog_run"),
            *curves("A", [-200.0, -600.0], "P", low=-1000.0),
            *curves("B", [1.0], "P", low=-1000.0),
        ],
        bounded=frozenset({"dog_run"}),
    )
    pooled = found.normalised_scores()
    assert list(pooled) == ["A"], "B has no run on dog_run"
    hopper, dog = (np.round(scores, 3).tolist() for scores in pooled["A"])
    assert (hopper, dog) == ([0.799, 0.4], [0.5, 0.25])  # 0 and 1 are -1000 and 1


def test_threshold_is_the_one_asked_for_or_most_of_the_way():
    three = curves("A", [-100.0, -100.0, -100.0], low=-1100.0)
    assert SweepResults("t", three).threshold_on("e") == -300.0
    assert SweepResults("t", three, threshold=-50.0).frames_to_threshold("e", "A") == [
        None,
        None,
        None,
    ]
    assert SweepResults("t", three, threshold=-100.0).frames_to_threshold("e", "A") == [20, 20, 20]


def test_latex_is_escaped():
    table = Table("n", "t", ["a_b", "50 %"], [["x & {y}", "1\\2 <~3^#$"]])
    assert r"a\_b & 50 \% \\" in table.latex()
    assert r"x \& \{y\} & 1\textbackslash{}2 \textless{}\textasciitilde{}3" in table.latex()
    assert r"\textasciicircum{}\#\$ \\" in table.latex()


def test_final_and_area_are_what_they_say():
    curve = Curve("a", "e", 0, np.array([0, 10, 30]), np.array([0.0, 2.0, 4.0]))
    assert curve.final == 2.0
    assert curve.area == pytest.approx((10 * 1.0 + 20 * 3.0) / 30)


def test_metrics_are_kept_beside_the_returns_and_read_back(tmp_path):
    def curve(arm, seed, last):
        frames, fau = np.array([10, 20]), np.array([0.5, last])
        metrics = {FAU: (frames + 5, fau)} if arm == "b" else {}
        return Curve(arm, "e", seed, frames, np.array([1.0, 2.0]), metrics)

    written = [curve("a", 0, 0.0), *(curve("b", seed, 0.1 * seed) for seed in range(4))]
    write_curves(written, tmp_path)
    again = read_curves(tmp_path / "curves.csv")
    for one, two in zip(written, again, strict=True):
        assert (one.arm, one.seed) == (two.arm, two.seed)
        assert one.metrics.keys() == two.metrics.keys()
        for name, columns in one.metrics.items():
            for mine, theirs in zip(columns, two.metrics[name], strict=True):
                np.testing.assert_allclose(mine, theirs)
    a, b = summary(again)
    assert f"{FAU}_iqm" not in a
    # each seed's mean of its (at most three) last points: 0.25, 0.3, 0.35, 0.4; their middle half
    assert b[f"{FAU}_iqm"] == pytest.approx(0.325)
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected the columns arm, env, seed, metric"):
        read_curves(tmp_path / "curves.csv")
