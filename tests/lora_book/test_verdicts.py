"""Each verdict of the findings page, computed once more from the rows with SciPy."""

from __future__ import annotations

import csv
import math
from collections import defaultdict

import numpy as np
import pytest
from scipy import stats

from lora_book import findings as results
from lora_book.findings import forgetting, verdicts
from lora_book.findings.verdicts import COMPARISONS, MARGIN


def kept(name):
    with (results.FOLDER / f"{name}.csv").open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


def best_runs(comparison, settings):
    """seed -> row, at the learning rate with the least mean, of those that three seeds have, or else the most."""
    rates = defaultdict(dict)
    for row in kept(comparison.file):
        if all(row[key] == str(value) for key, value in settings.items()) and int(row["seed"]) < 100:
            rates[row["learning_rate"], row.get("rest_rate")][int(row["seed"])] = row
    enough = min(3, max(map(len, rates.values())))
    repeated = [runs for runs in rates.values() if len(runs) >= enough]
    return min(repeated, key=lambda runs: stats.tmean([float(row[comparison.tuned_by]) for row in runs.values()]))


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_interval_is_that_of_a_paired_t_test(name):
    comparison = COMPARISONS[name]
    ours, theirs = (best_runs(comparison, side) for side in (comparison.ours, comparison.theirs))
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 3:
        assert comparison.verdict() == "not settled"
        return
    a, b = ([float(side[seed][comparison.measure]) for seed in seeds] for side in (ours, theirs))
    tested = stats.ttest_rel(a, b)
    low, high = tested.confidence_interval(0.95)
    found = comparison.difference()
    rounding = 2e-4 * (high - low)  # the table of t has three decimals
    assert (found.low, found.high) == pytest.approx((low, high), abs=rounding) and found.runs == len(seeds)
    margin = MARGIN.get(comparison.measure, 0.02 * stats.tmean(b))
    expected = "not settled" if max(abs(low), abs(high)) > margin else "level"
    if tested.pvalue < 0.05:
        expected = "more" if tested.statistic > 0 else "less"
    assert comparison.verdict() == expected


def test_the_gap_grows_with_the_data():
    gaps = []
    for examples in (1000, 4000):
        comparison = COMPARISONS[f"rank 8 against full, {examples} examples"]
        ours, theirs = (best_runs(comparison, side) for side in (comparison.ours, comparison.theirs))
        gaps.append([float(ours[s]["validation_loss"]) - float(theirs[s]["validation_loss"]) for s in range(3)])
    low, high = stats.ttest_rel(gaps[1], gaps[0]).confidence_interval(0.95)
    found = verdicts.growth("rank 8 against full, {} examples", "1000", "4000")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4) and found.verdict() == "more"


def test_intruders_are_set_beside_chance():
    rows = [row for row in kept("directions") if row["method"] == "lora" and row["learning_rate"] == "0.003"]
    found = verdicts.intruders_above_chance()
    for rank in (8, 64):
        runs = [row for row in rows if row["rank"] == str(rank) and row["alpha"] == "32"]
        for name, measure in (("", "intruders"), (", one size", "intruders_equal_size")):
            changes = [float(row[measure]) - float(row[f"random_{measure}"]) for row in runs]
            assert found[f"r = {rank}{name}"].mean == pytest.approx(stats.tmean(changes))
    assert found["r = 64"].verdict(9) == "not settled"  # three times the same: a floor
    assert found["r = 8, one size"].verdict() == found["full at 0.003"].verdict() == "more"


def map_runs(arm, rate, scale="1.0"):
    found = {"arm": arm, "learning_rate": rate, "scale": scale, "split": "test", "parts": "linear", "steps": "120"}
    rows = [row for row in kept("map") if all(row[key] == value for key, value in found.items())]
    return {row["seed"]: row for row in rows}


def test_the_map_compares_equal_layers():
    found = verdicts.on_the_map()
    full, root = map_runs("full", "0.001"), map_runs("r = 64, α/√r", "0.0032")
    seeds = sorted(full.keys() & root.keys())
    changes = [float(root[s]["prose_loss"]) - float(full[s]["prose_loss"]) for s in seeds]
    difference, of = found["r = 64, α/√r, prose_loss"]
    assert difference.mean == pytest.approx(stats.tmean(changes)) and difference.runs == len(seeds)
    assert of == pytest.approx(stats.tmean([float(full[s]["prose_loss"]) for s in seeds]))
    scaled = map_runs("full", "0.001", "0.85")
    changes = [float(scaled[s]["loss"]) - float(full[s]["loss"]) for s in sorted(scaled)]
    assert found["full × 0.85, loss"].difference.mean == pytest.approx(stats.tmean(changes))
    assert {(row["arm"], row["learning_rate"]) for row in verdicts.map_runs()} == {
        *verdicts.MAP_RATES.items(),
        *((arm, rate) for arm, rates in verdicts.LOWER_RATES.items() for rate in rates),
    }
    assert forgetting.tuned_rates() == {**verdicts.MAP_RATES, "r = 1": 0.0032}  # which the verdicts leave out
    (base,) = (float(row["prose_loss"]) for row in kept("map") if row["arm"] == "base")
    back = [1 - (float(scaled[s]["prose_loss"]) - base) / (float(full[s]["prose_loss"]) - base) for s in sorted(scaled)]
    low, high = stats.ttest_1samp(back, 0).confidence_interval(0.95)
    assert verdicts.given_back("full")[1:3] == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("arm", "rate", "name"),
    [
        ("r = 64, α/√r", "0.0032", "r = 64, α/√r"),
        ("r = 64, α/√r", "0.0018", "r = 64, α/√r at 0.0018"),
        ("r = 8", "0.0032", "r = 8 at 0.0032"),
    ],
)
def test_at_equal_loss_full_fine_tuning_is_read_off_between_its_rates(arm, rate, name):
    ours, full = map_runs(arm, rate), [map_runs("full", r) for r in ("0.001", "0.00056", "0.00031", "0.00017")]
    (base,) = (float(row["prose_loss"]) for row in kept("map") if row["arm"] == "base")
    changes, levels = [], []
    for seed, run in sorted(ours.items()):
        loss, prose = ([float(side[seed][x]) for side in full] for x in ("loss", "prose_loss"))
        assert loss[0] < float(run["loss"]) < loss[-1] and sorted(loss) == loss
        levels.append(base + np.exp(np.interp(float(run["loss"]), loss, np.log(np.array(prose) - base))))
        changes.append(float(run["prose_loss"]) - levels[-1])
    low, high = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    difference, of = verdicts.on_the_map()[f"{name}, prose_loss at equal loss"]
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-3) and len(changes) == 5
    assert of == pytest.approx(stats.tmean(levels))


def test_smollm2s_arms_are_compared_at_the_rates_that_tuning_chose():
    rows, sides = kept("smollm2_map"), []
    for arm in ("r = 8", "full"):
        mine = [row for row in rows if row["arm"] == arm]
        tuning = [row for row in mine if row["split"] == "validation"]
        best = min(tuning, key=lambda row: float(row["loss"]))["learning_rate"]
        reported = [row for row in mine if row["split"] == "test" and row["learning_rate"] == best]
        sides.append({row["seed"]: float(row["loss"]) for row in reported})
        assert forgetting.tuned_rates(**forgetting.SMOLLM2)[arm] == float(best)
    seeds = sorted(sides[0].keys() & sides[1].keys())
    low, high = stats.ttest_rel(*([side[s] for s in seeds] for side in sides)).confidence_interval(0.95)
    found = verdicts.on_smollm2()["r = 8, loss"].difference
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4) and found.runs == len(seeds) == 5


def with_embedding(arm, rate):
    settings = {"arm": arm, "learning_rate": rate, "scale": "1.0", "split": "test", "parts": "linear + wte"}
    rows = [row for row in kept("map") if all(row[key] == value for key, value in settings.items())]
    return {row["seed"]: float(row["loss"]) for row in rows}


@pytest.mark.parametrize(("arm", "linear_rate"), [("r = 8", "0.0058"), ("r = 64", "0.0058")])
def test_the_embedding_is_compared_on_equal_parts(arm, linear_rate):
    ours, full = with_embedding(arm, "0.0032"), with_embedding("full", "0.00056")
    seeds = sorted(ours.keys() & full.keys())
    gap = np.array([ours[s] - full[s] for s in seeds])
    found, of = verdicts.on_the_map()[f"embedding, {arm}, loss"]
    low, high = stats.ttest_1samp(gap, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4) and found.runs == len(seeds)
    assert of == pytest.approx(stats.tmean([full[s] for s in seeds]))
    linear = [map_runs(arm, linear_rate), map_runs("full", "0.001")]
    before = np.array([float(linear[0][s]["loss"]) - float(linear[1][s]["loss"]) for s in seeds])
    low, high = stats.ttest_1samp(before - gap, 0).confidence_interval(0.95)
    closed = verdicts.closed_by_embedding(arm)
    assert (closed.difference.low, closed.difference.high) == pytest.approx((low, high), abs=1e-4)
    assert closed.of == pytest.approx(before.mean())
    assert forgetting.tuned_rates("linear + wte") == verdicts.EMBEDDING_RATES


def test_the_embeddings_part_grows_with_new_words():
    rows = [row for row in kept("new_words") if row["split"] == "test"]

    def losses(arm, share):
        found = {row["seed"]: float(row["loss"]) for row in rows if row["arm"] == arm and row["share"] == share}
        return np.array([found[seed] for seed in sorted(found)])

    part = {share: losses("r = 8", share) - losses("r = 8, embedding", share) for share in ("0.0", "0.1", "0.3", "1.0")}
    family = verdicts.family()
    low, high = stats.ttest_1samp(-part["0.1"], 0).confidence_interval(0.95)
    found = family["new words, r = 8 with the embedding less without, p = 0.1"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    low, high = stats.ttest_1samp(part["1.0"] - part["0.3"], 0).confidence_interval(0.95)
    found = family["new words, embedding's part, p = 1 less 0.3"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_the_family_holds_every_difference():
    family = verdicts.family()
    assert family.keys() > COMPARISONS.keys()
    equal = {name.partition("loss, ")[2] for name in family if name.startswith("forgetting at equal loss")}
    assert equal == verdicts.equal_losses().keys()
    assert family["forgetting at equal loss, all references, α/√r"].verdict() == "less"


def test_few_seeds_are_compared_and_settle_nothing():
    rows = [{"learning_rate": rate, "seed": 0, "validation_loss": loss} for rate, loss in ((0.1, 3.0), (0.2, 2.0))]
    assert verdicts.best_runs(rows) == rows[1:]
    repeated = [{"learning_rate": 0.1, "seed": seed, "validation_loss": 3.0} for seed in (1, 2)]
    assert verdicts.best_runs(rows + repeated) == [rows[0], *repeated]  # of the rate that has three
    with pytest.raises(ValueError, match="no learning rate"):
        verdicts.best_runs([])


def test_forgetting_is_read_off_the_parabola_at_the_same_loss():
    def full(seed):  # loss 1 + x², prose 5 + x, for x the rate's logarithm
        return [
            {"seed": seed, "learning_rate": math.exp(x), "validation_loss": 1 + x * x, "prose_loss": 5 + x}
            for x in (-3, -2, -1, 0, 1)
        ]

    others = [run for seed in range(4) for run in full(seed)]
    rows = [
        {"seed": seed, "validation_loss": 1 + x * x, "prose_loss": 9.0} for seed, x in enumerate((-2.5, -1.5, -0.3))
    ]
    found = verdicts.forgetting_at_equal_loss(rows, others)
    assert found.runs == 3 and found.mean == pytest.approx(9 - (5 - 4.3 / 3))
    out_of_reach = [{"seed": 3, "validation_loss": loss, "prose_loss": 9.0} for loss in (0.9, 12.0)]
    assert verdicts.forgetting_at_equal_loss([*rows, *out_of_reach], others) == found
    with pytest.raises(ValueError, match="nothing can be compared"):
        verdicts.forgetting_at_equal_loss(out_of_reach, others)


@pytest.mark.parametrize(("alpha", "root", "verdict"), [("11.314", "True", "less"), ("256", "False", "more")])
def test_forgetting_at_equal_loss(alpha, root, verdict):
    usual = {"steps": "120", "init": "default", "lora_plus": "1"}
    rows = [row for row in kept("e2e") if all(row[key] == value for key, value in usual.items())]
    matrices = [row for row in rows if row["targets"] == "matrices"]
    at_rate = {"rank": "64", "alpha": alpha, "use_rslora": root, "learning_rate": "0.003"}
    changes = []
    for row in (row for row in rows if all(row[key] == value for key, value in at_rate.items())):
        full = sorted(
            (float(r["learning_rate"]), float(r["validation_loss"]), float(r["prose_loss"]))
            for r in matrices
            if r["seed"] == row["seed"]
        )
        rate, loss, prose = (np.array(column) for column in zip(*full))
        i = next(i for i in range(len(full)) if loss[i] >= float(row["validation_loss"]) >= loss[i + 1])
        x = np.log(rate)
        roots = np.roots(np.polyfit(x[i : i + 3], loss[i : i + 3], 2) - [0, 0, float(row["validation_loss"])])
        (at,) = (root.real for root in roots if x[i] <= root.real <= x[i + 1])
        changes.append(float(row["prose_loss"]) - np.interp(at, x, prose))
    low, high = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    typed = results.select(results.load_results("e2e"), steps=120)
    found = verdicts.forgetting_at_equal_loss(
        results.select(typed, rank=64, alpha=float(alpha), use_rslora=root == "True", learning_rate=0.003),
        results.select(typed, targets="matrices"),
    )
    assert len(changes) == 3 and (found.low, found.high) == pytest.approx((low, high), abs=1e-3)
    assert found.verdict() == verdict


def rates_of(lowest, seed, rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)):
    """Losses on a parabola over the rate's logarithm, lowest at `lowest`."""
    return [
        {"seed": seed, "learning_rate": rate, "validation_loss": 2 + math.log(rate / lowest) ** 2} for rate in rates
    ]


def test_the_best_rate_is_where_the_parabola_is_lowest():
    rows = [row for seed, lowest in enumerate((7e-4, 8e-4, 1.2e-3)) for row in rates_of(lowest, seed)]
    assert verdicts.best_rates(rows) == pytest.approx({0: 7e-4, 1: 8e-4, 2: 1.2e-3})
    others = [row for seed, lowest in enumerate((1.4e-3, 3.2e-3, 3.6e-3)) for row in rates_of(lowest, seed)]
    ratio = verdicts.rate_ratio(others, rows)
    logs = [math.log(2), math.log(4), math.log(3)]
    low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert ratio[:3] == pytest.approx((24 ** (1 / 3), math.exp(low), math.exp(high)), rel=1e-4) and ratio.runs == 3
    with pytest.raises(ValueError, match="lies at their edge"):
        verdicts.best_rates([row for seed in range(3) for row in rates_of(1e-2, seed)])


@pytest.mark.parametrize(("steps", "rank"), [(120, 8), (120, 64), (480, 8), (480, 64)])
def test_loras_rate_beside_full_fine_tunings(steps, rank):
    plain = {"steps": steps, "targets": "all", "alpha": 32, "init": "default", "lora_plus": 1, "use_rslora": False}
    rows = results.select(results.load_results("e2e"), **plain)
    sides = [[row for row in rows if row["rank"] == r and row["method"] != "base"] for r in (rank, 0)]

    def lowest(side, seed):  # with NumPy's own fit
        means = results.means(side, "learning_rate", "validation_loss")
        rates = [rate for rate, found in means.items() if found.runs == 3]
        at = min(range(len(rates)), key=lambda i: means[rates[i]].mean)
        x = np.log(rates[at - 1 : at + 2])
        y = [results.select(side, learning_rate=r, seed=seed)[0]["validation_loss"] for r in rates[at - 1 : at + 2]]
        a, b, _ = np.polyfit(x, y, 2)
        return -b / (2 * a)

    logs = [lowest(sides[0], seed) - lowest(sides[1], seed) for seed in range(3)]
    low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert verdicts.rate_ratio(*sides)[1:3] == pytest.approx((math.exp(low), math.exp(high)), rel=1e-3)
