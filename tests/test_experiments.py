"""The experiments' scripts, whole, on a GPT-2 as transformers saves it: tiny, with random weights."""

import csv
import math
import shutil

import capacity
import common
import controls
import geometry
import layers
import pytest
import rank_sweep
import scale
import sms
import starts
import style
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lora_lib import load_model, load_pretrained
from lora_lib.downloads import Message
from lora_lib.pretrained import MINI_FOLDER
from lora_lib.restaurants import restaurant_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    size = {"vocab_size": 4096, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**size, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(path)
    shutil.copy(MINI_FOLDER / "bpe.tiktoken", path)
    return path


@pytest.fixture
def e2e(monkeypatch, folder, tmp_path):
    """Runs an E2E script on made restaurants, two steps a run, and gives its rows."""
    data = restaurant_data(0, train=20, validation=3, test=3)
    monkeypatch.setattr(common, "load_e2e", lambda: data)
    prose = tmp_path / "prose.txt"
    prose.write_text("It was a dark and stormy night, and the lamp had gone out. " * 400)

    def run(script, *options):
        common_options = f"--model {folder} --out {tmp_path}/e2e.csv --keep {tmp_path}/runs --seeds 0 1 --steps 2"
        script.main(
            [*common_options.split(), "--batch-size", "2", "--max-length", "200", "--prose", str(prose), *options]
        )
        return read(tmp_path / "e2e.csv")

    run.folder = tmp_path
    return run


@pytest.fixture
def no_training(monkeypatch, folder):
    """Rows at once: the loss tells how far the learning rate is from 0.01; parameters are counted as they would be."""

    def measure(self, settings):
        tuned = common.prepare(load_model(folder), settings)
        count = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        return {"validation_loss": abs(math.log(max(settings["learning_rate"], 1e-9) / 0.01)), "trainable": count}

    monkeypatch.setattr(common.E2E, "measure", measure)


@pytest.fixture
def no_tuning(monkeypatch):
    """One rate is tried and taken, and its neighbours are not asked."""

    def tune(loss_at, start):
        assert loss_at(common.rate(start)) >= 0
        return common.rate(start)

    for module in (common, sms, capacity):
        monkeypatch.setattr(module, "tune", tune)
    monkeypatch.setattr(common, "neighbours", lambda best: ())


def read(path):
    with path.open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


def test_rank_sweep_tunes_on_one_seed_and_repeats_the_best(e2e, no_training):
    rows = e2e(rank_sweep, "--ranks", "0", "8")
    for rank, rates in (("0", {3e-4, 1e-3, 3e-3, 1e-2, 3e-2}), ("8", {1e-3, 3e-3, 1e-2, 3e-2})):
        mine = [row for row in rows if row["rank"] == rank]
        assert {float(row["learning_rate"]) for row in mine if row["seed"] == "0"} == rates
        assert [float(row["learning_rate"]) for row in mine if row["seed"] == "1"] == [0.01, 0.003, 0.03]
    assert e2e(rank_sweep, "--ranks", "0", "8") == rows  # nothing is done twice


def test_runs_are_measured_and_geometry_reads_their_weights(e2e, no_tuning):
    rows = e2e(rank_sweep, "--ranks", "0", "8")
    assert [(row["rank"], row["seed"]) for row in rows] == [("0", "0"), ("0", "1"), ("8", "0"), ("8", "1")]
    sizes = {"0": 4 * (4096 + 256) * 64, "8": 4 * 2 * 8 * (256 + 128 + 320 + 320)}  # embeddings; A and B
    for row in rows:
        assert int(row["file_bytes"]) > sizes[row["rank"]]
        assert 5 < float(row["prose_loss"]) < 12 and 5 < float(row["validation_loss"]) < 12  # untrained: about ln(4096)
        assert float(row["curve"].split()[0]) > 5 and float(row["values_told"]) == 0

    e2e(geometry)
    shapes = read(e2e.folder / "geometry.csv")
    assert [(row["rank"], row["seed"]) for row in shapes] == [("0", "0"), ("0", "1"), ("8", "0"), ("8", "1")]
    assert all((float(row["share_8"]) > 0.999) == (row["rank"] == "8") for row in shapes)
    similar = read(e2e.folder / "similarity.csv")
    assert {(row["of"], row["rank1"], row["rank2"]) for row in similar} == {
        *((of, "8", "8") for of in ("A", "change", "random")), ("change", "0", "0"), ("change", "8", "0")
    }  # fmt: skip
    assert all(0 < float(row["phi_8_8"]) < 1 for row in similar)


def test_layers_train_about_as_many_parameters(e2e, no_training):
    rows = e2e(layers, "--attention-rank", "16")
    counts = {row["targets"]: int(row["trainable"]) for row in rows}
    assert counts["attention"] == 2 * 16 * (256 + 128)
    assert set(counts) == {"all", "attention", "mlp", "head"}
    assert all(abs(count / counts["attention"] - 1) < 0.4 for count in counts.values()), counts  # a rank is whole


def test_scale_changes_rank_and_alpha_but_not_the_rate(e2e, no_training):
    rows = e2e(scale, "--ranks", "2", "32")
    changed = [row for row in rows if row["rank"] != "8"]
    assert {row["learning_rate"] for row in changed} == {"0.01"}
    assert {(row["rank"], row["alpha"], row["use_rslora"]) for row in changed} == {
        ("2", "32", "False"), ("2", "11.314", "True"), ("2", "8", "False"),
        ("32", "32", "False"), ("32", "11.314", "True"), ("32", "128", "False"),
    }  # fmt: skip


def test_starts_run_each_variant(e2e, no_training):
    rows = e2e(starts, "--rank", "4")
    assert {(row["init"], row["lora_plus"]) for row in rows if row["seed"] == "1"} == {
        ("default", "1"), ("default", "4"), ("default", "16"), ("pissa", "1")
    }  # fmt: skip


def test_full_fine_tuning_of_the_matrices_leaves_the_rest(e2e, no_training):
    rows = {row["targets"]: row for row in e2e(controls) if row["method"] == "full" and row["seed"] == "1"}
    assert int(rows["matrices"]["trainable"]) == 2 * 64 * 64 * (3 + 1 + 4 + 4)
    assert int(rows["all"]["trainable"]) > (4096 + 256) * 64 + int(rows["matrices"]["trainable"])


def test_pissa_starts_as_the_same_function_from_the_strongest_directions(folder):
    ids = torch.arange(12)[None]
    model, _ = load_pretrained(folder)
    W, expected = model.h[0].mlp.c_fc.weight.detach().clone(), model(ids)
    settings = {"method": "lora", "rank": 4, "alpha": 8, "lora_plus": 1, "targets": "all", "use_rslora": False}
    tuned = common.prepare(model, {**settings, "init": "pissa"}).eval()
    torch.testing.assert_close(tuned(ids), expected, atol=1e-5, rtol=1e-4)
    layer = tuned.lora_layers()["h.0.mlp.c_fc"]
    strongest = torch.linalg.svdvals(W)[:4]
    torch.testing.assert_close(torch.linalg.svdvals(layer.adapters["default"].delta())[:4], strongest)
    torch.testing.assert_close(torch.linalg.svdvals(layer.base.weight)[0], torch.linalg.svdvals(W)[4])


def test_lora_plus_gives_b_a_larger_rate(e2e, monkeypatch, no_tuning):
    asked = []

    def fit(model, train, **settings):
        asked.append(settings["lr_ratio"])
        return common.History(loss=[1.0])

    monkeypatch.setattr(common, "fit", fit)
    rows = e2e(starts, "--rank", "2")
    ratios = [(ratio("h.0.mlp.c_fc.A"), ratio("h.0.mlp.c_fc.B")) if ratio else (1, 1) for ratio in asked]
    assert ratios == [(1, int(row["lora_plus"])) for row in rows] and {16, 4} < {b for _, b in ratios}


def test_sms_runs_every_method_and_is_scored_on_the_label(folder, tmp_path, monkeypatch, no_tuning):
    words = {"ham": "see you at home later", "spam": "win a free prize now"}
    messages = [Message(label, f"{text} {i}") for i in range(50) for label, text in words.items()]
    monkeypatch.setattr(sms, "load_sms_spam", lambda: messages)
    sms.main(["--model", str(folder), "--out", str(tmp_path / "sms.csv"), "--seeds", "0", "--steps", "12",
              "--ranks", "2"])  # fmt: skip
    made = [row for row in read(tmp_path / "sms.csv") if row["seed"] == "0"]
    assert [row["rank"] for row in made if row["method"] == "lora"] == ["16", "2"]
    rows = {row["method"]: row for row in reversed(made)}
    assert set(rows) == {*sms.WORD_COUNTS, *sms.METHODS}
    assert float(rows["tf-idf"]["test_accuracy"]) == 1
    assert float(rows["full"]["test_accuracy"]) > 0.8
    assert int(rows["head"]["trainable"]) == 2 * 64 + 2
    per_block = 16 * (256 + 128 + 320 + 320)
    assert int(rows["lora"]["trainable"]) == 2 * per_block + 130


def test_style_learns_a_text_and_is_measured_on_its_end(folder, tmp_path, monkeypatch, no_tuning):
    monkeypatch.setattr(common, "rate", lambda step: 0.01)  # large, for few steps
    text = tmp_path / "plays.txt"
    text.write_text("ROMEO: so fair a day. " * 1800 + "and then the curtain fell, " * 200)
    options = ["--model", str(folder), "--out", str(tmp_path / "s.csv"), "--keep", str(tmp_path / "runs")]
    options += ["--seeds", "0", "--steps", "30", "--ranks", "4", "0", "--batch-size", "4", "--prose", str(text)]
    options += ["--max-length", "16"]
    style.main([str(text), *options])
    base, *rows = read(tmp_path / "s.csv")
    assert [(row["method"], row["rank"]) for row in rows] == [("lora", "4"), ("full", "0")]
    for row in rows:  # what is learned is the first nine tenths; the loss is that of the last, which says other things
        learned = float(row["curve"].split()[-1])
        assert learned < float(base["validation_loss"]) - 0.5 and learned < float(row["validation_loss"]) - 0.5
        assert float(row["prose_loss"]) < float(base["prose_loss"])  # here most of the same text


def test_capacity_counts_bits(folder, tmp_path, monkeypatch, no_tuning):
    monkeypatch.setattr(capacity, "RANKS", (1, 4))
    options = "--facts 8 --steps 80 --batch-size 8 --seeds 0"
    capacity.main(["--model", str(folder), "--out", str(tmp_path / "c.csv"), *options.split()])
    rows = read(tmp_path / "c.csv")
    assert {row["rank"] for row in rows} == {"0", "1", "4"}
    (full,) = (row for row in rows if row["rank"] == "0")
    assert float(full["recall"]) > 0.8
    for row in rows:  # 12 bits a fact, and a nat of loss is 1.4427 of them
        assert int(row["bits"]) == pytest.approx(max(0, 8 * (12 - 1.4427 * float(row["loss"]))), abs=0.6)


def test_random_facts_are_distinct_and_repeat_with_the_seed():
    facts = capacity.random_facts(300, 10, seed=1)
    assert len({tuple(ids.tolist()) for ids, _ in facts}) == 300
    assert all(targets.tolist()[:2] == [-100, -100] and 0 <= targets[2] < 10 for _, targets in facts)
    again = capacity.random_facts(300, 10, seed=1)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(facts, again))


def test_rows_refuse_another_set_of_columns(tmp_path):
    rows = common.Rows(tmp_path / "rows.csv")
    rows.run({"seed": 0}, lambda: {"loss": 1.5})
    assert common.Rows(tmp_path / "rows.csv").run({"seed": 0}, lambda: pytest.fail("done already"))["loss"] == "1.5"
    with pytest.raises(ValueError, match="use another --out"):
        rows.run({"seed": 1}, lambda: {"los": 1.5})


def test_rates_and_tuning():
    assert [common.rate(step) for step in range(-3, 4)] == [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    tried = []

    def loss_at(rate):
        tried.append(rate)
        return abs(rate - 0.03)

    assert common.tune(loss_at, start=0) == 0.03
    assert sorted(tried) == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]  # each once, and both neighbours of the best
