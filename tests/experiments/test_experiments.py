"""The experiments' scripts, whole, on a GPT-2 as transformers saves it: tiny, with random weights."""

import argparse
import csv
import itertools
import math
import shutil
from collections import Counter

import capacity
import common
import controls
import directions
import forgetting_map
import geometry
import how_many_seeds
import how_much_data
import new_words
import one_sitting
import order_fields
import plateau
import pytest
import rank_sweep
import real_model
import reinforce
import sms
import starts
import style
import torch
import which_alpha
import which_layers
import which_parts
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lora_book.measure import text_windows
from lora_book.tasks import Message, restaurant_data
from lora_lib import load_model, load_pretrained
from lora_lib.gpt2 import MINI_FOLDER


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
    monkeypatch.setattr(common, "text_windows", lambda *text, count: text_windows(*text, 2))  # of prose, to be quick
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

    for module in (common, how_much_data, sms, capacity, which_parts, plateau, real_model, reinforce):
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
    rows = e2e(which_layers, "--attention-rank", "16")
    counts = {row["targets"]: int(row["trainable"]) for row in rows}
    assert counts["attention"] == 2 * 16 * (256 + 128)
    assert set(counts) == {"all", "attention", "mlp", "head"}
    assert all(abs(count / counts["attention"] - 1) < 0.4 for count in counts.values()), counts  # a rank is whole


def test_scale_changes_rank_and_alpha_but_not_the_rate(e2e, no_training):
    rows = e2e(which_alpha, "--ranks", "2", "32")
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


def test_pissa_is_the_librarys_start(folder):
    model, _ = load_pretrained(folder)
    settings = {"method": "lora", "rank": 4, "alpha": 8, "lora_plus": 1, "targets": "all", "use_rslora": False}
    tuned = common.prepare(model, {**settings, "init": "pissa"})
    assert tuned.peft_config["default"].init_lora_weights == "pissa"


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


def test_parts_trains_what_it_says_and_directions_reads_the_weights(e2e, no_tuning):
    rows = e2e(which_parts, "--cells", "lora 8", "full", "full, all", "lora 8, wte", "wte", "--neighbours", "full")
    wte, matrices, adapters = 4096 * 64, 2 * 64 * 64 * 12, 2 * 8 * (256 + 128 + 320 + 320)
    counts = {(row["method"], row["parts"]): int(row["trainable"]) for row in rows}
    rest = 256 * 64 + 2 * (4 * 64 + 64 * (3 + 1 + 4 + 1)) + 2 * 64  # positions, LayerNorms and biases
    assert counts == {
        ("base", "none"): 0, ("lora", "linear"): adapters, ("full", "linear"): matrices, ("full", "wte"): wte,
        ("lora", "linear + wte"): adapters + wte, ("full", "all"): matrices + wte + rest,
    }  # fmt: skip
    assert all(row["file_bytes"] != "0" for row in rows if row["parts"] == "linear")

    e2e(directions, "--seeds", "0", "1")
    found = read(e2e.folder / "directions.csv")
    best = {("lora", "0.003", "0"), ("lora", "0.003", "1"), ("full", "0.001", "0"), ("full", "0.001", "1")}
    near = {("full", "0.0003", "1"), ("full", "0.003", "1")}
    assert {(row["method"], row["learning_rate"], row["seed"]) for row in found} == best | near
    for row in found:
        assert float(row["own_share_4"]) > float(row["share_4"]) > 0
        assert float(row["random_4"]) / float(row["amplification_4"]) == pytest.approx(float(row["share_4"]), rel=0.2)
    pairs = read(e2e.folder / "overlap.csv")
    assert [(row["method"], row["of"], row["seed1"], row["seed2"]) for row in pairs] == [
        *(("lora", of, "0", "1") for of in ("A", "change", "random")),
        *(("full", of, "0", "1") for of in ("change", "random")),
    ]


def test_parts_tunes_both_rates_by_turns(e2e, monkeypatch):
    def measure(self, settings):  # the linear layers are best at 0.0003, once the rest is at 0.003
        best = 0.003 if settings["rest_rate"] < 0.003 else 0.0003
        off = [math.log(settings["learning_rate"] / best), math.log(settings["rest_rate"] / 0.003)]
        return {"validation_loss": abs(off[0]) / 4 + abs(off[1])}

    monkeypatch.setattr(common.E2E, "measure", measure)
    monkeypatch.setattr(common, "environment", dict)
    monkeypatch.setattr(which_parts.Parts, "run", without_base(which_parts.Parts.run))
    rows = e2e(which_parts, "--cells", "full, all", "--neighbours")
    assert [(row["learning_rate"], row["rest_rate"]) for row in rows if row["seed"] == "1"] == [("0.0003", "0.003")]


def without_base(run):
    return lambda self, cell, *settings: None if cell.method == "base" else run(self, cell, *settings)


def test_parts_gives_linear_layers_and_adapters_the_first_rate(folder):
    ratio = which_parts.Parts.lr_ratio(None, {"learning_rate": 0.001, "rest_rate": 0.003})
    first = ("h.0.mlp.c_fc.weight", "h.0.attn.c_proj.weight", "base_model.h.0.mlp.c_fc.adapters.default.A")
    assert [ratio(name) for name in first] == [1, 1, 1]
    rest = ("wte.weight", "base_model.wpe.weight", "h.0.mlp.c_fc.bias", "h.1.ln_2.weight", "ln_f.bias")
    assert [ratio(name) for name in rest] == pytest.approx([3] * 5)
    assert which_parts.Parts.lr_ratio(None, {"learning_rate": 0.001, "rest_rate": 0.001}) is None


def test_plateau_stores_facts_and_doubles_the_steps_until_they_add_nothing(folder, tmp_path, no_tuning):
    options = "--ranks 2 --facts-per-rank 8 --steps 40 --doublings 3 --batch-size 8 --seeds 0 1"
    plateau.main(["--model", str(folder), "--out", str(tmp_path / "p.csv"), *options.split()])
    rows = read(tmp_path / "p.csv")
    first = [row for row in rows if row["seed"] == "0"]
    steps, bits = ([float(row[name]) for row in first] for name in ("steps", "bits"))
    assert steps[:2] == [80, 160] and float(first[0]["exposures"]) == 40
    gains = [after / before for before, after in itertools.pairwise(bits)]
    assert all(gain >= plateau.GAIN for gain in gains[:-1]) and (gains[-1] < plateau.GAIN or len(steps) == 4)
    assert float(first[-1]["bits_a_number"]) == pytest.approx(bits[-1] / (2 * 2 * 320), abs=1e-3)
    assert [row["steps"] for row in rows if row["seed"] == "1"] == [first[-1]["steps"]]


def test_the_cached_features_give_the_models_own_logits(folder):
    model, keys = load_model(folder).eval(), torch.arange(12).view(4, 3)
    with torch.no_grad():
        found = plateau.Tail(model)(plateau.before_last_mlp(model, keys))
        torch.testing.assert_close(found, model(keys)[:, -1])


def test_amounts_keeps_the_best_validation_of_each_amount(e2e, monkeypatch, no_tuning):
    monkeypatch.setattr(how_much_data, "DATA", (how_much_data.Amount(4, 8, 2), how_much_data.Amount(12, 16, 2)))
    monkeypatch.setattr(how_much_data, "BATCHES", (how_much_data.Amount(12, 4, 8),))
    rows = e2e(how_much_data, "--ranks", "8", "0", "--examples", "4", "12", "--batches", "2", "8")
    settings = [tuple(row[name] for name in ("rank", "examples", "steps", "batch_size", "seed")) for row in rows]
    assert settings == [
        (rank, *amount, seed)
        for rank in ("8", "0") for amount in (("4", "8", "2"), ("12", "16", "2"), ("12", "4", "8")) for seed in "01"
    ]  # fmt: skip
    for row in rows:
        losses = [float(loss) for loss in row["curve"].split()]
        assert len(losses) == (5 if row["batch_size"] == "8" else 9)  # before the first step, and on the way
        assert float(row["validation_loss"]) == pytest.approx(min(losses), abs=1e-3)
        assert losses[0] > float(row["validation_loss"]) and int(row["best_step"]) > 0
        assert float(row["last_loss"]) == pytest.approx(losses[-1], abs=1e-3) and 5 < float(row["prose_loss"]) < 12


def test_a_run_that_diverges_is_a_row(e2e, monkeypatch, no_tuning):
    def fit(model, train, **settings):
        settings["on_validation"](0, model)
        raise FloatingPointError

    monkeypatch.setattr(how_much_data, "fit", fit)
    row = e2e(how_much_data, "--ranks", "8", "--examples", "50", "--seeds", "0")[-1]
    assert row["last_loss"] == "inf" and row["best_step"] == "0"


def test_reinforcement_raises_a_reward_that_can_be_had(folder, tmp_path, monkeypatch, no_tuning):
    def reward(text, meaning):  # for one letter, which a step or two make likelier
        return min(1.0, text.count("e") / 10)

    monkeypatch.setattr(reinforce, "slot_accuracy", reward)
    monkeypatch.setattr(reinforce, "NEW_TOKENS", 12)
    monkeypatch.setattr(reinforce, "rate", lambda step: 1e-5)
    options = f"--model {folder} --out {tmp_path}/r.csv --ranks 4 0 --seeds 0 --first 1 --steps 12"
    monkeypatch.setattr(reinforce, "START", {0: 0, 4: 3})
    reinforce.main(options.split())
    start, lora, full = read(tmp_path / "r.csv")
    assert [start["method"], lora["method"], full["method"]] == ["start", "lora", "full"]
    assert int(lora["trainable"]) == 2 * 4 * (256 + 128 + 320 + 320) and int(full["trainable"]) == 2 * 64 * 64 * 12
    assert float(lora["missed"]) < float(start["missed"]) > float(full["missed"])


def test_the_policy_loss_pushes_what_was_rewarded(folder):
    model = load_model(folder)
    texts = [reinforce.Text([5, 6], [7, 8], 1.0), reinforce.Text([5, 6], [9], 0.0)]
    loss = reinforce.policy_loss(model, texts, group=2)
    with torch.no_grad():  # half above and half below the mean; three tokens were written
        log_p = [model(torch.tensor([t.prompt + t.answer])).log_softmax(-1)[0] for t in texts]
        by_hand = (-(log_p[0][1, 7] + log_p[0][2, 8]) + log_p[1][1, 9]) * 0.5 / 3
    assert loss.item() == pytest.approx(by_hand.item(), abs=0.02)  # bfloat16


class Letters:
    """A tokenizer with a token for each character."""

    def __call__(self, text):
        return {"input_ids": [ord(c) % 256 for c in text]}

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_a_real_models_orders_are_encoded_and_scored(tmp_path, monkeypatch, no_tuning):
    torch.manual_seed(0)
    size = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, pad_token_id=0))
    monkeypatch.setattr(real_model, "load_smollm2", lambda: (model, Letters()))
    prose = tmp_path / "prose.txt"
    prose.write_text("It was a dark and stormy night. " * 100)
    options = ["--prose", str(prose), "--out", str(tmp_path / "s.csv"), "--seeds", "0", "--steps", "2"]
    real_model.main([*options, "--ways", "full", "lora 8", "full, linear", "rslora 64"])
    rows = read(tmp_path / "s.csv")
    ways = [("base", "0"), ("full", "0"), ("lora", "8"), ("full, linear", "0"), ("rslora", "64")]
    assert [(row["method"], row["rank"]) for row in rows] == ways
    assert all(float(row["exact"]) == 0 and 4 < float(row["prose_loss"]) < 7 for row in rows)
    linear = 7 * 64 * 64
    adapter = 7 * 2 * 64  # for each rank
    assert [int(row["trainable"]) for row in rows[1:]] == [
        sum(p.numel() for p in model.parameters()), 8 * adapter, linear, 64 * adapter
    ]  # fmt: skip


def test_an_order_is_scored_value_by_value():
    (order,) = real_model.make_orders(1, ["Ada"], seed=0)
    example = real_model.encode(order, Letters())
    answer = Letters().decode([t for t in example[1].tolist() if t != -100])
    assert answer.endswith("<|im_end|>") and '"name": "Ada"' in answer
    told = [answer[span] for span in real_model.spans([ord(c) for c in answer], Letters())]
    assert len(told) == 5 and all(str(v).lower() in t.lower() for v, t in zip(order.record.values(), told))

    def model_that_misses(missed):
        class Fake(torch.nn.Module):
            def forward(self, ids):
                logits = torch.nn.functional.one_hot(example[1][None].clamp(0), 256).float()
                if missed:
                    logits[0, missed] = 0
                return type("Output", (), {"logits": logits})

        return Fake()

    start = len(example[0]) - len(answer)
    assert real_model.scores(model_that_misses(None), [example], Letters())[1:] == (1, 1)
    in_name = start + answer.index("Ada")
    assert real_model.scores(model_that_misses(in_name), [example], Letters())[1:] == (0, 0.8)
    assert real_model.scores(model_that_misses(start + 3), [example], Letters())[1:] == (0, 1)  # a key, not a value
    right, found = (order_fields.by_field(model_that_misses(at), [example], Letters()) for at in (None, in_name))
    assert found["right_name"] == 0 and found["right_code"] == found["right_urgent"] == right["right_name"] == 1
    assert found["loss_name"] > right["loss_name"] and found["loss_code"] < right["loss_code"]
    assert sum(share for name, share in found.items() if name.startswith("loss_")) == pytest.approx(1, abs=1e-3)


def test_orders_repeat_and_test_names_are_new():
    assert real_model.make_orders(5, real_model.NAMES, 1) == real_model.make_orders(5, real_model.NAMES, 1)
    assert len(set(real_model.codes().values())) == len(real_model.ARTICLES) == len(set(real_model.ARTICLES))
    assert not set(real_model.NAMES[:80]) & set(real_model.NAMES[80:])


def test_rows_of_another_process_are_seen(tmp_path):
    ours, theirs = (common.Rows(tmp_path / "rows.csv") for _ in range(2))
    theirs.run({"seed": 0}, lambda: {"loss": 1.5})
    assert ours.run({"seed": 0}, lambda: pytest.fail("done already"))["loss"] == "1.5"
    ours.run({"seed": 1}, lambda: {"loss": 2.5})
    assert [row["loss"] for row in read(tmp_path / "rows.csv")] == ["1.5", "2.5"]


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


def test_one_sitting_runs_every_way_once(monkeypatch, folder, tmp_path):
    data = restaurant_data(0, slots=one_sitting.SLOTS, train=6, validation=2, test=2)
    monkeypatch.setattr(one_sitting, "restaurant_data", lambda seed, slots: data)
    options = ["--model", str(folder), "--steps", "1", "--out", str(tmp_path / "one.csv")]
    one_sitting.main(options)
    rows = read(tmp_path / "one.csv")
    assert Counter(row["parts"] for row in rows) == {"none": 1, "linear": 8, "linear + wte": 1, "all": 3}
    trained = {(row["parts"], row["rank"]): int(row["trainable"]) for row in rows}
    assert trained["none", "0"] == 0 and trained["linear + wte", "8"] == trained["linear", "8"] + 4096 * 64
    assert trained["linear", "64"] == 64 * trained["linear", "1"]
    assert trained["all", "0"] == sum(p.numel() for p in load_model(folder).parameters())
    one_sitting.main(options)
    assert len(read(tmp_path / "one.csv")) == len(rows), "a run that has its row is not made again"


@pytest.fixture
def on_the_map(e2e, monkeypatch, tmp_path):
    """Runs forgetting_map.py or how_many_seeds.py with two steps a run and few texts; `stages` replaces the map's."""
    (tmp_path / "plays.txt").write_text("ROMEO: But soft, what light is it that breaks? " * 400)
    monkeypatch.setattr(forgetting_map, "load_sms_spam", lambda: [Message("ham", "See you at eight, ok? " * 400)])

    def run(script, *options, **stages):
        monkeypatch.setattr(forgetting_map, "STAGES", stages)
        monkeypatch.setattr(how_many_seeds, "STAGES", stages)
        few = f"--plays {tmp_path}/plays.txt --claims {tmp_path}/claims --tested 4 --windows 2 --references 4"
        return e2e(script, *few.split(), *options)

    return run


def small_stage(parts="linear"):
    return forgetting_map.Stage(parts, 2, ("full", "r = 8"), 2, {"full": (-1, -2)})


def test_the_map_tunes_on_seeds_that_it_does_not_report(on_the_map):
    rows = on_the_map(forgetting_map, "--stages", "linear", linear=small_stage())
    base, runs = rows[0], rows[1:]
    assert base["arm"] == "base" and float(base["kl"]) == 0 and float(base["prose_kl"]) == 0
    tuning = [row for row in runs if row["seed"] == "0"]
    assert {row["split"] for row in tuning} == {"validation"} and {row["scale"] for row in tuning} == {"1.0"}
    reported = [row for row in runs if row["seed"] != "0"]
    assert {row["split"] for row in reported} == {"test"} and {row["seed"] for row in reported} == {"100", "101"}
    for arm in ("full", "r = 8"):
        mine = {float(row["learning_rate"]): float(row["loss"]) for row in tuning if row["arm"] == arm}
        best = min(mine, key=mine.get)
        assert min(mine) < best < max(mine)
        rates = {float(row["learning_rate"]) for row in reported if row["arm"] == arm}
        start = forgetting_map.grid(forgetting_map.ARMS[arm].start)
        assert {best, start} <= rates and (arm == "full") == (len(rates) > len({best, start}))
    assert on_the_map(forgetting_map, "--stages", "linear", linear=small_stage()) == rows  # nothing is done twice


def test_a_change_is_measured_and_scaled(on_the_map):
    rows = on_the_map(forgetting_map, "--stages", "wte", linear=small_stage(), wte=small_stage("linear + wte"))
    base = {name: float(rows[0][name]) for name in ("loss", "prose_loss", "plays_loss", "restaurants_loss")}
    runs = [row for row in rows if row["split"] == "test" and row["arm"] != "base"]
    scales = (1.0, 0.85)
    for i in range(0, len(runs), len(scales)):
        group = runs[i : i + len(scales)]
        assert [float(row["scale"]) for row in group] == list(scales)
        kl, prose_kl = ([float(row[name]) for row in group] for name in ("kl", "prose_kl"))
        assert kl == sorted(kl, reverse=True) and prose_kl == sorted(prose_kl, reverse=True) and prose_kl[-1] >= 0
        assert abs(float(group[-1]["loss"]) - base["loss"]) < abs(float(group[0]["loss"]) - base["loss"])
        norm, largest, path = (float(group[0][name]) for name in ("delta_norm", "spectral_norm", "path"))
        assert 0 < largest <= norm <= 1.001 * path and float(group[0]["wte_norm"]) > 0
        assert 1 <= float(group[0]["stable_rank"]) <= (8.01 if group[0]["rank"] == "8" else 64)


def test_with_tune_first_nothing_is_reported_before_its_rate_is_known(on_the_map):
    stage = small_stage("linear + wte")._replace(starts={"full": -1, "r = 8": 2}, tune_first=True)
    rows = on_the_map(forgetting_map, "--stages", "wte", linear=small_stage(), wte=stage)
    for arm in ("full", "r = 8"):
        mine = [row for row in rows if row["arm"] == arm]
        first = next(i for i, row in enumerate(mine) if row["split"] == "test")
        losses = {float(row["learning_rate"]): float(row["loss"]) for row in mine[:first]}
        best = min(losses, key=losses.get)
        assert min(losses) < best < max(losses) and {row["seed"] for row in mine[:first]} == {"0"}
        reported = [row for row in mine if row["split"] == "test"]
        assert max(float(row["learning_rate"]) for row in reported) == best
        assert {row["rest_rate"] for row in mine if row["seed"] == "0"} == {"0.0032", "0.0018", "0.0058"}
        assert {row["rest_rate"] for row in reported} == {"0.0032"}


def test_the_best_rate_is_approached_downhill_and_needs_both_neighbours():
    losses = {0: 3.0, 1: 2.0, 2: 1.0, 3: 1.5}
    found = [forgetting_map.tuned(start, losses.get) for start in (0, 1, 2)]
    assert found == [(None, [-1]), (2, []), (2, [])]
    assert forgetting_map.tuned(3, losses.get) == (None, [4])
    assert [forgetting_map.grid(step) for step in (-1, 0, 1, 3)] == [0.00056, 0.001, 0.0018, 0.0058]


def test_a_run_is_claimed_by_one_process(tmp_path):
    names = forgetting_map.SETTINGS
    one, other = dict.fromkeys(names, 1), dict.fromkeys(names, 2)
    claims = forgetting_map.Claims(tmp_path / "claims")
    held = claims.take(one)
    assert held is not None and claims.take(one) is None and claims.take(other) is not None
    held.write_text("999999999")  # of a process that is no more
    assert claims.take(one) == held


def test_seeds_are_the_maps_settings_on_other_seeds(on_the_map):
    rows = on_the_map(how_many_seeds, linear=small_stage())
    assert [(row["arm"], row["learning_rate"], row["seed"]) for row in rows[:2]] == [
        ("full", "0.001", "0"), ("r = 8", "0.0058", "0"),
    ]  # fmt: skip
    assert all(row["split"] == "validation" and float(row["prose_loss"]) > 0 and row["kl"] == "" for row in rows)


def test_new_words_take_the_place_of_a_share_of_names_and_values():
    content, new = {1: 50, 2: 30, 3: 10, 4: 10}, [90, 91, 92, 93]
    found = {share: new_words.exchange(content, new, share) for share in (0.0, 0.1, 0.5, 1.0)}
    none, few, half, every = (sum(content[i] for i in tokens) for tokens in found.values())
    assert (none, few, every) == (0, 10, 100) and 40 <= half <= 60
    assert set(found[1.0].values()) == set(new) and found[0.1].items() <= found[1.0].items()
    example = (torch.tensor([1, 2, 7]), torch.tensor([-100, 2, 1]))
    ((ids, targets),) = new_words.exchanged([example], found[1.0], 100)
    assert ids.tolist() == [found[1.0][1], found[1.0][2], 7]
    assert targets.tolist() == [-100, found[1.0][2], found[1.0][1]]


def test_new_words_are_tuned_at_both_ends_and_reported_on_other_seeds():
    args = argparse.Namespace(
        model="gpt2-mini", steps=2, batch_size=2, shares=[0.0, 0.1, 1.0], arms=list(new_words.ARMS), wte_rate=0.0032
    )
    best = {"r = 8": 3, "r = 8, embedding": 4, "full, embedding": 0}

    def at(run):  # the best rate is a step lower where all words are new
        return best.get(run["arm"], 0) - (run["share"] == 1)

    made, kept = [], {}
    while left := [run for run in new_words.plan(kept, args) if new_words.key(run, new_words.SETTINGS) not in kept]:
        made.append(left[0])
        far = abs(math.log((left[0]["learning_rate"] or 1) / new_words.grid(at(left[0]))))
        kept[new_words.key(left[0], new_words.SETTINGS)] = 1 + far
    assert {run["seed"] for run in made if run["split"] == "validation"} == {0}
    reported = [run for run in made if run["split"] == "test" and run["arm"] != "base"]
    assert len(reported) == 3 * 3 * 5 and {run["seed"] for run in reported} == set(range(100, 105))
    assert all(run["learning_rate"] == new_words.grid(at(run)) for run in reported)


def test_new_words_reach_the_training_and_the_losses(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(new_words, "REPORTED", (100,))
    monkeypatch.setattr(new_words, "tuned", lambda start, loss: (start, []))
    (tmp_path / "prose.txt").write_text("It was a dark and stormy night, and the lamp had gone out. " * 400)
    options = f"--model {folder} --out {tmp_path}/w.csv --claims {tmp_path}/claims --prose {tmp_path}/prose.txt"
    new_words.main(f"{options} --steps 2 --batch-size 2 --meanings 20 --tested 4 --shares 0 1".split())
    rows = read(tmp_path / "w.csv")
    assert [(row["arm"], row["share"]) for row in rows] == [
        (arm, share) for arms in (["base"], new_words.ARMS) for share in ("0.0", "1.0") for arm in arms
    ]
    for row in rows:
        new = row["share"] == "1.0"
        assert (float(row["new"]) > 0.1) == new and (row["loss_new"] != "") == new
        assert (int(row["trainable"]) > 4096 * 64) == ("embedding" in row["arm"])
    assert len({row["loss_new"] for row in rows}) == 5  # the base and three arms differ; none where p = 0
