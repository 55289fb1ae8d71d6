"""Tables and figure of studies/natural.md, generated from the lines of natural_study.py.

    python natural_tables.py studies/natural.jsonl                          # prints the tables
    python natural_tables.py studies/natural.jsonl --write studies          # writes natural.md and natural.svg

On the page, tables are between the markers `<!-- table NAME -->` and `<!-- end -->`; other text is kept. Cells are
percent on test, mean ± sample standard deviation over pretraining seeds. Differences are paired by seed; their 95 %
intervals resample seeds and, within them, recordings (audio) or photographs (video), which several clips may share.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from defaults import read

from cmg.utils.errors import InputError, Parser, run

CROSS, SAME = ("audio->video", "video->audio"), ("audio->audio", "video->video")
HEADINGS = {"audio->video": "A→V", "video->audio": "V→A", "audio->audio": "A→A", "video->video": "V→V",
            "transfer": "transfer"}
LABELS = {
    "dcid": "DCID", "h_dcid": "H-DCID", "fcid": "FCID", "micu": "MICU", "codaar": "CoDAAR",
    "dcid_shared": "DCID, `--recipe shared`", "h_dcid_shared": "H-DCID, `--recipe shared`",
    "dcid_shared_club01": "DCID, `--recipe shared --weights club=0.1`",
    "h_dcid_shared_club01": "H-DCID, `--recipe shared --weights club=0.1`",
    "dcid_raw": "DCID, `--standardize none`", "h_dcid_raw": "H-DCID, `--standardize none`",
    "untrained": "untrained, DCID", "probe": "linear probe of the raw features", "chance": "chance",
    "no_cpc": "`--without cpc`", "no_club": "DCID, `--without club`", "no_cmcm": "`--without cmcm`",
    "h_dcid_no_club": "H-DCID, `--without club`", "club01": "DCID, `--weights club=0.1`",
    "h_dcid_club01": "H-DCID, `--weights club=0.1`",
    "own_ema": "`--without mm_ema`", "no_reset": "`--without reset`", "k100": "K = 100", "k200": "K = 200",
    "k800": "K = 800", "contrast": "`--weights contrast=3`", "joint": "`--code_choice joint`",
    "h_dcid_cmcm": "H-DCID with CMCM",
    "attention": "`--mm_ema attention`",
}
SYSTEMS = ("dcid", "h_dcid", "fcid", "micu", "codaar", "dcid_shared", "h_dcid_shared")
WITH = {"av": "audio and video", "avt": "with sentences"}
RESAMPLES = 2000


class Study:
    """Lines of a study, by kind."""

    def __init__(self, lines):
        self.runs = [line for line in lines if "curve" in line]
        self.fixed = [line for line in lines if line.get("kind") == "reference"]
        self.clips = next((line for line in lines if line.get("kind") == "clips"), None)
        if not self.runs or self.clips is None:
            raise InputError("the study has no runs, or no line that describes its clips; see natural_study.py")

    def of(self, arm, modalities, clips=None, steps=390):
        """Runs of an arm by seed."""
        return {line["seed"]: line for line in self.runs if (line["arm"], line["modalities"], line["clips"]) == (
            arm, modalities, clips) and line["steps"] == steps}

    def arms(self, modalities):
        return [arm for arm in LABELS if self.of(arm, modalities)]


# ------------------------------------------------------------------------------------------------------------- numbers
def last(line, part="test"):
    """Values of a run at its last step, with `transfer`, the mean of both directions."""
    return with_mean(line["curve"][max(line["curve"], key=int)][part])


def with_mean(values):
    return values | ({"transfer": np.mean([values[d] for d in CROSS])} if CROSS[0] in values else {})


def cell(values, digits=1):
    """Mean, with standard deviation if there are several values."""
    values = [v for v in values if v is not None and not np.isnan(v)]
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def step_seconds(runs):
    """Processor time per step, over runs that were not resumed after their end."""
    found = [line["cpu_seconds"] / line["steps"] for line in runs.values() if line["cpu_seconds"]]
    return np.mean(found) if found else np.nan


def hits(study, line, direction):
    """(N,) whether each test clip is classified correctly, and (N,) its recording or photograph."""
    answers = np.array([ord(letter) - ord("a") for letter in line["final"]["predictions"][direction]])
    target = direction.split("->")[1]
    return answers == np.array(study.clips["classes"]), np.array(study.clips[target])


def difference(study, one, other, directions=CROSS):
    """(mean, low, high) of the accuracy of `one` minus that of `other`, two dicts seed -> line, over common seeds.

    Seeds are resampled and, within each, the sources of the test clips; with a single seed, only the sources.
    """
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    rng, draws = np.random.default_rng(0), np.zeros((len(directions), RESAMPLES))
    chosen = rng.integers(len(seeds), size=(RESAMPLES, len(seeds)))
    means = []
    for row, direction in enumerate(directions):
        pairs = [(hits(study, one[s], direction), hits(study, other[s], direction)) for s in seeds]
        gain = np.stack([100.0 * (a.astype(float) - b) for (a, _), (b, _) in pairs])          # (S, N)
        _, source = np.unique(pairs[0][0][1], return_inverse=True)
        sums = np.stack([np.bincount(source, weights=g) for g in gain])                       # (S, sources)
        sizes = np.bincount(source)
        weight = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=RESAMPLES)
        of_seed = (weight @ sums.T) / (weight @ sizes)[:, None]                               # (R, S)
        draws[row] = np.take_along_axis(of_seed, chosen, 1).mean(1)
        means.append(gain.mean())
    low, high = np.percentile(draws.mean(0), [2.5, 97.5])
    return float(np.mean(means)), float(low), float(high)


def effect(found):
    return "" if found is None else f"{found[0]:+.1f} [{found[1]:+.1f}, {found[2]:+.1f}]"


# -------------------------------------------------------------------------------------------------------------- tables
def markdown(heading, rows):
    return "\n".join([f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}",
                      *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def seeds_of(runs):
    return " ".join(map(str, sorted(runs)))


def systems(study, modalities):
    """Table of the systems at equal steps."""
    rows = []
    for arm in SYSTEMS:
        runs = study.of(arm, modalities)
        if runs:
            points = [last(line) for line in runs.values()]
            rows.append([LABELS[arm], *(cell([p[name] for p in points]) for name in HEADINGS),
                         cell([p["used"] for p in points], 0), cell([p["common"] for p in points], 0),
                         cell([100 * step_seconds(runs)], 0),
                         seeds_of(runs)])
    for line in study.fixed:
        if line["modalities"] in (None, modalities):
            values = [with_mean(v) for v in line["values"]]
            rows.append([LABELS[line["arm"]], *(cell([v.get(name) for v in values]) for name in HEADINGS), "", "", "",
                         ""])
    return markdown([WITH[modalities], *HEADINGS.values(), "codes used", "common seconds %", "CPU s / 100 steps",
                     "seeds"], rows)


def equal_time(study, modalities):
    """Table of the transfer of each system at the last point of its curve within the processor time of DCID's run."""
    runs = study.of("dcid", modalities)
    if not runs:
        return ""
    budget = 390 * step_seconds(runs)
    rows = []
    for arm in SYSTEMS:
        points, runs = [], study.of(arm, modalities)
        for line in runs.values():
            steps = [s for s in map(int, line["curve"]) if s * step_seconds(runs) <= 1.05 * budget]
            if steps:
                points.append((max(steps), with_mean(line["curve"][str(max(steps))]["test"])["transfer"]))
        if points:
            rows.append([LABELS[arm], " ".join(sorted({str(s) for s, _ in points})), cell([v for _, v in points])])
    return markdown([f"{WITH[modalities]}, {budget:.0f} s", "steps", "transfer"], rows)


def along(runs, steps):
    """Cells with the transfer at each of `steps`, over the runs evaluated at that step."""
    return [cell([with_mean(line["curve"][str(s)]["test"])["transfer"] for line in runs.values()
                  if str(s) in line["curve"]]) for s in steps]


def curves(study, modalities):
    """Table of the transfer over the course of the runs."""
    listed = (*SYSTEMS, "dcid_shared_club01", "h_dcid_shared_club01", "club01", "h_dcid_club01", "no_club",
              "h_dcid_no_club", "dcid_raw", "h_dcid_raw")
    arms = [arm for arm in listed if study.of(arm, modalities)]
    steps = sorted({int(s) for arm in arms for line in study.of(arm, modalities).values() for s in line["curve"]})
    return markdown([WITH[modalities], *map(str, steps)], [
        [LABELS[arm], *along(study.of(arm, modalities), steps)] for arm in arms])


def longer(study):
    """Table of the transfer over the course of runs of twice the length, with the processor seconds of a whole run."""
    lines = [line for line in study.runs if line["steps"] > 390]
    steps = sorted({int(s) for line in lines for s in line["curve"]})
    rows = []
    for arm, modalities, length in dict.fromkeys((line["arm"], line["modalities"], line["steps"]) for line in lines):
        runs = study.of(arm, modalities, steps=length)
        rows.append([LABELS[arm], WITH[modalities], *along(runs, steps), cell([length * step_seconds(runs)], 0),
                     seeds_of(runs)])
    return markdown(["steps", "", *map(str, steps), "CPU s", "seeds"], rows)


def against(study, pairs):
    """Table of differences in transfer for rows (arm, baseline), with and without sentences."""
    rows = []
    for one, other in pairs:
        found = {m: difference(study, study.of(one, m), study.of(other, m)) for m in WITH}
        if any(found.values()):
            counts = [len(set(study.of(one, m)) & set(study.of(other, m))) for m in WITH]
            rows.append([LABELS[one], LABELS[other], *map(effect, found.values()), " / ".join(map(str, counts))])
    return markdown(["", "against", *(f"{text}: difference" for text in WITH.values()), "seeds"], rows)


def toc(study):
    """Table of TOC with 196 channels, with the best number of channels on val, and with the published settings."""
    rows = []
    for modalities in WITH:
        for arm in ("dcid", "h_dcid", "fcid", "micu", "codaar", "dcid_shared"):
            gains = defaultdict(list)
            for line in study.of(arm, modalities).values():
                base, found = last(line), line["final"]["toc"]
                counts = {name: of for name, of in found.items() if not name.startswith("released")}
                gains["196 of 256"].append(np.mean([found["196,1,0"]["test"][d] - base[d] for d in CROSS]))
                val, test = last(line, "val"), []
                for d in CROSS:
                    best = max(counts, key=lambda name: counts[name]["val"][d])
                    test.append(counts[best]["test"][d] - base[d] if counts[best]["val"][d] > val[d] else 0.0)
                gains["chosen on val"].append(np.mean(test))
                released = [found[f"released {d}"]["test"][d] - base[d] for d in CROSS if f"released {d}" in found]
                gains["published settings"].append(np.mean(released) if released else None)
            if gains:
                rows.append([LABELS[arm], WITH[modalities], *(cell(v) for v in gains.values()),
                             seeds_of(study.of(arm, modalities))])
    return markdown(["change of transfer by TOC", "", "196 of 256", "chosen on val", "published settings", "seeds"],
                    rows)


def levels(study):
    """Table of the use of both codebooks of H-DCID."""
    rows = []
    for modalities in WITH:
        for arm in [arm for arm in LABELS if arm.startswith("h_dcid") and study.of(arm, modalities)]:
            points = [last(line) for line in study.of(arm, modalities).values()]
            rows.append([LABELS[arm], WITH[modalities], *(cell([p[name] for p in points]) for name in CROSS),
                         *(cell([p[name + level] for p in points], 0) for level in ("", "_2")
                           for name in ("used", "common")), seeds_of(study.of(arm, modalities))])
    return markdown(["", "", "A→V", "V→A", "level 1: codes", "common %", "level 2: codes", "common %", "seeds"], rows)


def fractions(study):
    """Table for fractions of labeled clips of each class."""
    rows = []
    for modalities in WITH:
        for arm in ("dcid", "h_dcid", "micu", "codaar", "dcid_shared"):
            runs = study.of(arm, modalities).values()
            if runs:
                few = list(next(iter(runs))["final"]["fractions"])
                rows.append([LABELS[arm], WITH[modalities], *(cell([with_mean(line["final"]["fractions"][n])["transfer"]
                                                                    for line in runs]) for n in few),
                             cell([last(line)["transfer"] for line in runs])])
    return markdown(["transfer", "", "5 labels a class", "10", "25", "50", "100"], rows)


def robustness(study):
    """Table for noise on the features, and for a modality that is missing at test time."""
    rows = []
    for modalities in WITH:
        for arm in ("dcid", "h_dcid", "micu", "codaar", "dcid_shared"):
            runs = study.of(arm, modalities).values()
            if runs:
                final = [line["final"] for line in runs]
                rows.append([LABELS[arm], WITH[modalities], cell([last(line)["transfer"] for line in runs]),
                             *(cell([with_mean(f["noise"][level])["transfer"] for f in final]) for level in (
                                 "0.5", "1.0")),
                             *(cell([f["missing"][which] for f in final]) for which in ("both", "audio", "video")),
                             *(cell([f["gap"][which] for f in final], 2) for which in (
                                 "gap", "same_class", "other_class")),
                             cell([last(line)["common"] for line in runs], 0)])
    return markdown(["", "", "transfer", "noise 0.5", "noise 1.0", "head of both, tested on both", "on audio",
                     "on video", "gap", "cosine, same class", "other class", "common seconds %"], rows)


def sizes(study):
    """Table for the number of pretraining clips at equal steps."""
    counts = sorted({line["clips"] for line in study.runs if line["clips"]})
    rows = []
    for arm in ("dcid", "dcid_shared"):
        for modalities in WITH:
            cells = [cell([last(line)["transfer"] for line in study.of(arm, modalities, n).values()])
                     for n in (*counts, None)]
            if any(cells[:-1]):
                rows.append([LABELS[arm], WITH[modalities], *cells])
    return markdown(["transfer", "", *(f"{n:,} clips" for n in counts), "3,120 clips"], rows)


COMPONENTS = ("no_cpc", "no_club", "club01", "no_cmcm", "own_ema", "no_reset", "attention", "k100", "k200", "k800",
              "joint", "contrast", "dcid_shared")
TABLES = {
    "systems av": lambda study: systems(study, "av"),
    "systems avt": lambda study: systems(study, "avt"),
    "time av": lambda study: equal_time(study, "av"),
    "time avt": lambda study: equal_time(study, "avt"),
    "curves av": lambda study: curves(study, "av"),
    "curves avt": lambda study: curves(study, "avt"),
    "longer": longer,
    "standardize": lambda study: against(study, [("dcid", "dcid_raw"), ("h_dcid", "h_dcid_raw")]),
    "claims": lambda study: against(study, [("h_dcid", "dcid"), ("micu", "dcid"), ("fcid", "dcid"), ("codaar", "dcid"),
                                            ("h_dcid_shared", "dcid_shared"), ("h_dcid_club01", "club01"),
                                            ("h_dcid_no_club", "no_club")]),
    "components": lambda study: against(study, [
        *((arm, "dcid") for arm in COMPONENTS), ("h_dcid_no_club", "h_dcid"), ("h_dcid_club01", "h_dcid"),
        ("dcid_shared_club01", "dcid_shared"), ("h_dcid_shared_club01", "h_dcid_shared")]),
    "toc": toc,
    "levels": levels,
    "fractions": fractions,
    "robustness": robustness,
    "sizes": sizes,
}


def page(text, study):
    """The page with all tables regenerated."""
    def made(found):
        if found[1] not in TABLES:
            raise InputError(f"no table '{found[1]}'; expected one of {', '.join(TABLES)}")
        return f"<!-- table {found[1]} -->\n{TABLES[found[1]](study)}\n<!-- end -->"
    return re.sub(r"<!-- table ([\w ]+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def figure(study, path):
    """Plot of the transfer over the course of the runs, with and without sentences, as SVG."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "natural"
    from matplotlib import pyplot as plt
    axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")[1]
    for axis, (modalities, title) in zip(axes, WITH.items()):
        for arm in ("dcid", "h_dcid", "fcid", "micu", "codaar", "dcid_shared", "dcid_raw"):
            runs = list(study.of(arm, modalities).values())
            if runs:
                steps = sorted(map(int, runs[0]["curve"]))
                values = np.array([[with_mean(line["curve"][str(s)]["test"])["transfer"] for s in steps]
                                   for line in runs])
                line, = axis.plot(steps, values.mean(0), "--" if arm == "dcid_raw" else "-",
                                  label=LABELS[arm].replace("`", ""))
                axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, lw=0)
        axis.axhline(100 / 13, color="gray", lw=0.8, ls=":")
        axis.set(title=title, xlabel="steps of 80 clips", ylim=(0, 100))
    axes[0].set_ylabel("transfer, % (mean of A→V and V→A)")
    axes[0].legend(fontsize=7, loc="upper left")
    plt.savefig(path, metadata={"Date": None})
    plt.close()


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="lines of natural_study.py")
    parser.add_argument("--write", type=Path, default=None, metavar="DIR", help="folder of natural.md and natural.svg")
    options = parser.parse_args(argv)
    study = Study(read(options.study))
    if options.write is None:
        for name, table in TABLES.items():
            print(f"{name}\n\n{table(study)}\n")
        return
    path = options.write / "natural.md"
    path.write_text(page(path.read_text(), study))
    figure(study, options.write / "natural.svg")


if __name__ == "__main__":
    run(main)
