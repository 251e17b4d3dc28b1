"""Training and generation, on a model small enough to be quick."""

import itertools
import math
import threading
from functools import partial

import pytest
import torch
from small_models import TINY, adapted, counting_examples, tiny
from torch import nn
from torch.nn import functional as F

from lora_lib import GPT2Config, GPT2Model, get_peft_model, load_pretrained
from lora_lib.data import IGNORE, batches
from lora_lib.gpt2 import generate_text
from lora_lib.settings import shown
from lora_lib.training import FitConfig, History, evaluate, fit, loss_sum, lr_factor

QUIET = {"bf16": False, "progress": False}


def with_dropout(seed: int = 0):
    """The small model with dropout everywhere, and an adapter that has some of its own."""
    torch.manual_seed(seed)
    config = GPT2Config(**{**vars(TINY), "embd_pdrop": 0.2, "resid_pdrop": 0.2, "attn_pdrop": 0.2})
    return get_peft_model(GPT2Model(config), "all-linear", 4, 8, lora_dropout=0.2).enable_lora_training()


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_fit_learns_with_the_adapter_and_leaves_the_base_alone():
    model = adapted()
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    history = fit(
        model,
        counting_examples(),
        steps=60,
        batch_size=4,
        learning_rate=0.03,
        validation=counting_examples(),
        bf16=False,
        progress=False,
    )
    assert history.validation[-1][1] < 0.7 * history.validation[0][1]
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    assert len(history.loss) == len(history.learning_rate) == 60 and history.tokens > 0


def test_a_history_is_told_in_a_line():
    losses = [9.0, *([5.0] * 10), 3.0]
    history = History(losses, [0.1] * 12, validation=[(0, 8.0), (6, 7.0), (12, 6.0)], tokens=1000, seconds=4.0)
    told = "History(12 steps, loss 9.00 → 4.80, validation 8.00 → 6.00, 4 s, 250 tokens/s)"
    assert repr(history) == told  # the last loss is a mean over ten steps
    assert repr(History()) == "History(0 steps, 0 s, 0 tokens/s)"


def test_the_same_seed_gives_the_same_run_and_the_callers_random_state_stays():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    runs = [fit(adapted(), counting_examples(), steps=5, batch_size=4, seed=s, progress=False).loss for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    torch.manual_seed(7)
    model = adapted(seed=3)
    torch.manual_seed(7)
    fit(model, counting_examples(), steps=2, progress=False)
    assert torch.equal(torch.rand(3), wanted)


def test_lr_ratio_gives_a_parameter_its_own_learning_rate(tmp_path):
    settings = {"steps": 4, "batch_size": 4, "bf16": False, "progress": False}

    def run(**more):
        model = adapted()
        fit(model, counting_examples(), **settings, **more)
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    start = {name: p.detach() for name, p in adapted().named_parameters() if p.requires_grad}
    only_b = {"learning_rate": 0.01, "lr_ratio": lambda name: float(name.endswith(".B"))}
    for name, p in run(**only_b).items():
        assert torch.equal(p, start[name]) == name.endswith(".A"), name
    # Twice the ratio at half the rate is the same rate, to the bit, and so is what a checkpoint keeps.
    wanted, path = run(learning_rate=0.02), tmp_path / "run.safetensors"
    for _ in range(2):  # the second time the run is over, and comes from the file
        twice = run(learning_rate=0.01, lr_ratio=lambda name: 2, checkpoint=path)
        assert all(torch.equal(p, wanted[name]) for name, p in twice.items())
    locked = threading.Lock()  # a function may hold what cannot be copied
    run(lr_ratio=partial(lambda lock, name: 2, locked), checkpoint=tmp_path / "locked.safetensors")
    with pytest.raises(ValueError, match=r"lr_ratio must give finite numbers from 0, got .*A': -1"):
        run(lr_ratio=lambda name: -1)


def test_accumulated_batches_weigh_every_token_alike():
    whole, parts = adapted(), adapted()
    kwargs = {"steps": 1, "learning_rate": 0.01, "clip": math.inf, "bf16": False, "progress": False}
    fit(whole, counting_examples(8), batch_size=8, **kwargs)
    fit(parts, counting_examples(8), batch_size=2, accumulate=4, **kwargs)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0, msg=name)


def test_masked_targets_carry_no_loss():
    model = tiny()
    ids, targets = torch.arange(6)[None], torch.tensor([[IGNORE, IGNORE, 3, 4, 5, IGNORE]])
    wanted = F.cross_entropy(model(ids)[0, 2:5], targets[0, 2:5], reduction="sum")
    torch.testing.assert_close(loss_sum(model, ids, targets), wanted)


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Notes the bytes of each block of memory that is kept for the backward pass."""

    def __init__(self):
        self.bytes = {}
        super().__init__(self.note, lambda tensor: tensor)

    def note(self, tensor):
        self.bytes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor


def test_gradient_checkpointing_changes_the_memory_and_nothing_else():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_head=2, n_layer=3)  # with dropout
    model = get_peft_model(GPT2Model(config), "all-linear", 4, lora_dropout=0.1).enable_lora_training()
    ids, found = torch.randint(50, (2, 16)), []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        torch.manual_seed(1)
        kept = Kept()
        with kept:
            loss = loss_sum(model, ids, ids)
        loss.backward()
        found.append((sum(kept.bytes.values()), [p.grad.clone() for p in model.parameters() if p.requires_grad]))
    (much, plain), (little, checkpointed) = found
    assert little < 0.4 * much
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    assert any(grad.any() for grad in checkpointed)  # B is zero at first, so A's are


def test_evaluate_is_the_mean_over_tokens_not_over_batches():
    model, data = tiny(), counting_examples(7)
    each = [(loss_sum(model, i[None], t[None]).item(), int((t != IGNORE).sum())) for i, t in data]
    wanted = sum(loss for loss, _ in each) / sum(count for _, count in each)
    assert evaluate(model, data, batch_size=3, bf16=False) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="no examples"):
        evaluate(model, [])


def test_learning_rate_warms_up_and_falls_to_nothing():
    factors = [lr_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == factors[10] == 1.0 and factors[99] < 0.001
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_validation_comes_first_on_the_way_and_last():
    seen = []
    history = fit(
        adapted(), counting_examples(), steps=7, validation=counting_examples(2), validate_every=3, progress=False,
        on_validation=lambda step, model: seen.append((step, model.training)),
    )  # fmt: skip
    assert [step for step, _ in history.validation] == [step for step, _ in seen] == [0, 3, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        model.base_model.ln_f.weight.fill_(float("nan"))
    model.eval()
    with pytest.raises(FloatingPointError, match="loss is nan at step 1: no weight has been changed yet"):
        fit(model, counting_examples(), steps=3, progress=False)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters() if p.requires_grad)
    assert not any(module.training for module in model.modules())


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_step():
    class Steep(nn.Module):
        """The loss is finite, and its gradient is not, from the second step on."""

        def __init__(self):
            super().__init__()
            self.inner, self.calls = tiny(), 0

        def forward(self, ids):
            self.calls += 1
            logits = self.inner(ids)
            if self.calls > 1:
                logits.register_hook(lambda grad: grad * math.inf)
            return logits

    model, seen = Steep(), []
    with pytest.raises(FloatingPointError, match="norm of the gradient is nan at step 2: the run diverged; try"):
        fit(model, counting_examples(), steps=3, validate_every=1, **QUIET,
            on_validation=lambda step, model: seen.append(trained(model)))  # fmt: skip
    assert all(torch.equal(p, seen[-1][name]) for name, p in model.named_parameters())


def test_a_validation_loss_that_is_nan_ends_the_run():
    class Ill(nn.Module):
        """Its logits are numbers while it trains, and none when it is measured."""

        def __init__(self):
            super().__init__()
            self.inner = tiny()

        def forward(self, ids):
            return self.inner(ids) * (1 if self.training else math.nan)

    examples = counting_examples()
    with pytest.raises(FloatingPointError, match="the validation loss is nan after 0 steps"):
        fit(Ill(), examples, steps=2, validate_every=1, validation=examples, keep_best=True, **QUIET)


def test_nothing_to_train_and_nothing_to_train_on():
    with pytest.raises(ValueError, match="call model.enable_lora_training"):
        fit(tiny().requires_grad_(False), counting_examples(), steps=1)
    with pytest.raises(ValueError, match="the training set is empty"):
        fit(tiny(), [], steps=1)


def test_models_with_hugging_faces_output_train_too():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny()

        def forward(self, ids):
            return type("Output", (), {"logits": self.inner(ids)})

    history = fit(Wrapped(), counting_examples(), steps=20, learning_rate=0.01, progress=False)
    assert history.loss[-1] < history.loss[0]


def test_generated_text_is_the_same_in_a_batch_and_alone():
    model, tokenizer = load_pretrained("gpt2-mini")
    prompts = ["Once upon a time there was a little", "The", "She looked at the moon and said that it was"]
    together = generate_text(model, tokenizer, prompts, 12, batch_size=2)
    assert together == [generate_text(model, tokenizer, p, 12)[0] for p in prompts]
    assert all(text and "<|endoftext|>" not in text for text in together)


def reference(model, data, steps, batch_size, accumulate, learning_rate, warmup, weight_decay, clip, seed):
    """The loop that `fit` stands for, as plainly as it can be written; returns its losses and rates."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=weight_decay)
    loader, losses, rates = batches(data, batch_size, 0, seed=seed), [], []
    stream = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    for step in range(steps):
        group = list(itertools.islice(stream, accumulate))
        loss = sum(loss_sum(model, *batch) for batch in group) / sum((t != IGNORE).sum() for _, t in group)
        grads = torch.autograd.grad(loss, learned)
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        for p, grad in zip(learned, grads, strict=True):
            p.grad = grad * min(1, clip / (norm + 1e-6))
        up = round(warmup * steps)
        share = (step + 1) / up if step < up else (1 + math.cos(math.pi * (step - up) / (steps - up))) / 2
        rates.append(learning_rate * share)
        optimizer.param_groups[0]["lr"] = rates[-1]
        optimizer.step()
        losses.append(loss.item())
    return losses, rates


@pytest.mark.parametrize("clip", [0.05, 0.5, math.inf])
@pytest.mark.parametrize("weight_decay", [0.0, 3.0])
def test_fit_is_the_plain_loop(clip, weight_decay):
    settings = {"steps": 10, "batch_size": 3, "accumulate": 2, "learning_rate": 0.02, "warmup": 0.3, "seed": 4,
                "clip": clip, "weight_decay": weight_decay}  # fmt: skip
    ours, plain = adapted().double(), adapted().double()
    for p in ours.parameters():
        p.grad = torch.ones_like(p)  # what a caller left there has no part in it
    history = fit(ours, counting_examples(), **settings, **QUIET)
    losses, rates = reference(plain, counting_examples(), **settings)
    assert history.learning_rate == pytest.approx(rates, rel=1e-12) and len(rates) == 10
    assert history.loss == pytest.approx(losses, rel=1e-5)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, msg=name)
    assert all(p.grad is None for p in ours.parameters() if p.requires_grad)


def test_the_first_rate_is_never_nothing_and_the_last_step_still_moves():
    assert [lr_factor(step, 1, warmup) for step, warmup in ((0, 0), (0, 1))] == [1, 1]
    assert lr_factor(3, 4, 0) > 0 and [lr_factor(step, 4, 1) for step in range(4)] == [0.25, 0.5, 0.75, 1]


def test_a_seed_gives_the_same_bits_twice_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = []
        for seed in (3, 3, 4):
            model = with_dropout()
            history = fit(model, counting_examples(), steps=6, batch_size=3, learning_rate=0.02, seed=seed, **QUIET)
            runs.append((history.loss, trained(model)))
    finally:
        torch.set_num_threads(threads)
    (loss, weights), (again, twins), (other, _) = runs
    assert loss == again != other and all(torch.equal(p, twins[name]) for name, p in weights.items())


def test_what_a_callback_draws_follows_from_the_seed_and_evaluation_reads_in_order():
    drawn, read, data = [], [], counting_examples(5)
    for state in (1, 2):
        model = tiny()
        torch.manual_seed(state)
        fit(model, data, steps=1, **QUIET, on_validation=lambda step, _: drawn.append(torch.rand(1).item()))
    assert drawn[:2] == drawn[2:] and drawn[0] != drawn[1]
    model = Asked()
    model.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0][:, 0].tolist()))
    evaluate(model, data, batch_size=2)
    assert read == [int(ids[0]) for ids, _ in data]


def test_each_step_has_its_own_dropout():
    """At a rate of next to nothing, all steps on one batch have the same loss, but for the dropout."""
    data, settings = counting_examples(4), {"steps": 5, "batch_size": 4, "learning_rate": 1e-30, **QUIET}
    without = fit(adapted(), data, **settings).loss
    assert without == pytest.approx([without[0]] * 5, rel=1e-5)
    losses = fit(with_dropout(), data, **settings).loss
    assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 1e-4 * losses[0]


def test_evaluation_has_no_dropout_and_leaves_every_module_in_its_mode():
    model, data = with_dropout(), counting_examples(5)
    model.eval()
    wanted = sum(loss_sum(model, i[None], t[None]).item() for i, t in data) / sum((t != IGNORE).sum() for _, t in data)
    model.train()
    model.base_model.h[0].eval()  # one part stays in another mode than the rest, as its user left it
    modes = [module.training for module in model.modules()]
    assert evaluate(model, data, bf16=False) == pytest.approx(float(wanted), rel=1e-5)
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes
    seen = []
    fit(model, data, steps=2, **QUIET, on_validation=lambda step, model: seen.append(model.base_model.drop.training))
    assert [module.training for module in model.modules()] == modes and seen == [True, True]
    model.eval()
    fit(model, data, steps=1, **QUIET)
    assert not any(module.training for module in model.modules())


class Asked(nn.Module):
    """Notes in which precision and mode it is called."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = tiny(), []

    def forward(self, ids):
        narrow = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        self.seen.append((self.training, narrow))
        return self.inner(ids)


@pytest.mark.parametrize(("bf16", "narrow"), [(True, True), (False, False), (None, False)])
def test_bfloat16_is_taken_where_it_is_asked_for_and_on_no_cpu_by_itself(bf16, narrow, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)  # a GPU beside it changes nothing
    model, data = Asked(), counting_examples(4)
    fit(model, data, steps=1, batch_size=4, validation=data, bf16=bf16, progress=False)
    evaluate(model, data, bf16=bf16)
    assert model.seen == [(False, narrow), (True, narrow), (False, narrow), (False, narrow)]


def test_a_float64_model_trains_in_float64_and_not_under_autocast():
    model, data = adapted().double(), counting_examples()
    history = fit(model, data, steps=20, learning_rate=0.02, batch_size=4, validation=data, progress=False)
    assert history.loss[-1] < history.loss[0] and {p.dtype for p in model.parameters()} == {torch.float64}
    for call in (lambda: fit(model, data, steps=1, bf16=True), lambda: evaluate(model, data, bf16=True)):
        with pytest.raises(ValueError, match=r"bf16=True does not work on float64 weights: .*model.float\(\) first"):
            call()


SETTINGS = {
    "steps": ([1, 9], [0, -1, 1.5, "9", True, 10**30]),
    "passes": ([0.5, 3], [0, -1, "9", True, math.inf]),
    "batch_size": ([1], [0, -4, 2.0, "8", 10**30]),
    "accumulate": ([1], [0, -1, 1.0, None]),
    "checkpoint_every": ([1], [0, -1, 2.5, None]),
    "validate_every": ([None, 1], [0, -1, 2.5, "1"]),
    "learning_rate": ([1e-9, 1, 1e30], [0, 0.0, -1e-3, 1.1e30, math.inf, math.nan, "1e-3", None, True]),
    "lr_ratio": ([None, len], [16, "16"]),
    "warmup": ([0, 0.5, 1], [-0.1, 1.1, math.nan, "0.1", True, None]),
    "weight_decay": ([0, 0.0, 2.5], [-0.01, math.inf, math.nan, "0", None]),
    "clip": ([1e-9, 1, math.inf], [0, 0.0, -1, -math.inf, math.nan, "1", None, True]),
    "bf16": ([None, True, False], ["no", 0, 1]),
    "seed": ([0, 2**63 - 1], [-1, 2**63, 0.5, "0", None, True]),
    "checkpoint": ([None, "a/b"], ["", 3, b"a"]),
    "patience": ([None, 1], [0, 1.5, True]),
    "keep_best": ([True, False], [1, None]),
    "progress": ([True, False], ["no", 0, None]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_used_is_refused_by_name_and_value(name):
    good, bad = SETTINGS[name]
    for value in good:
        FitConfig(**{**({} if name == "passes" else {"steps": 1}), name: value})
    model = with_dropout()
    before = trained(model)
    for value in bad:
        with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
            fit(model, counting_examples(), **{"steps": 1, name: value})
        assert str(caught.value).endswith(f"got {shown(value)}")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    if name in ("batch_size", "bf16"):
        with pytest.raises(ValueError, match=f"^{name} must be "):
            evaluate(model, counting_examples(), **{name: bad[0]})


def test_settings_come_as_a_config_or_as_keywords():
    config = FitConfig(steps=4, batch_size=4, learning_rate=0.01, **QUIET)
    one, other = adapted(), adapted()
    assert fit(one, counting_examples(), config).loss == fit(other, counting_examples(), **vars(config)).loss
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    data = counting_examples()
    with pytest.raises(TypeError, match="in a FitConfig or as keywords, not both; beside it: batch_size"):
        fit(one, data, config, batch_size=4)
    with pytest.raises(TypeError, match="expected a FitConfig, or settings as keywords, got a dict"):
        fit(one, data, {"steps": 4})
    with pytest.raises(TypeError, match="fit has no setting 'learningrate'. Did you mean 'learning_rate'"):
        fit(one, data, steps=4, learningrate=1)
    for settings in ({}, {"steps": 1, "passes": 1}):
        with pytest.raises(ValueError, match="fit needs steps, the number of steps, or passes over the data"):
            fit(one, data, **settings)


@pytest.mark.parametrize(("passes", "accumulate", "steps"), [(1, 1, 4), (2.5, 1, 10), (0.1, 1, 1), (3, 2, 6)])
def test_steps_follow_from_passes(passes, accumulate, steps):
    model, read = Asked(), []
    model.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0][:, 0].tolist()))
    data = [(ids, targets) for ids, targets in counting_examples(7)]  # four batches of two, the last of one
    history = fit(model, data, passes=passes, batch_size=2, accumulate=accumulate, **QUIET)
    assert len(history.loss) == steps
    if passes == 1:
        assert sorted(read) == sorted(int(ids[0]) for ids, _ in data)


def test_a_pair_of_model_and_tokenizer_is_no_model():
    for call in (
        lambda pair: fit(pair, counting_examples(), steps=1),
        lambda pair: evaluate(pair, counting_examples()),
    ):
        with pytest.raises(TypeError, match=r"expected a model, .* got a tuple: load_pretrained returns a pair"):
            call((tiny(), "tokenizer"))


def test_ids_that_the_model_does_not_have_are_refused_before_the_first_step():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(vocab_size=50, **sizes))
    good = counting_examples(2)
    for model in (adapted(), theirs, get_peft_model(theirs, "all-linear", 2)):
        for place, ids in ((0, 50), (1, 50), (0, -1), (1, -7)):
            bad = [part.clone() for part in good[0]]
            bad[place][-1] = ids
            for call in (
                lambda model, bad: fit(model, [*good, tuple(bad)], steps=1, **QUIET),
                lambda model, bad: fit(model, good, steps=1, validation=[*good, tuple(bad)], **QUIET),
                lambda model, bad: evaluate(model, [*good, tuple(bad)]),
            ):
                with pytest.raises(ValueError, match=r"example 2 has token ids from .* has those from 0 to 49"):
                    call(model, bad)


def scored(values):
    """A score that takes these values one after the other."""
    left = iter(values)
    return lambda model: next(left)


def test_the_run_stops_when_its_score_gets_no_better_and_takes_the_best_weights():
    seen = {}
    settings = {"steps": 20, "validate_every": 2, "learning_rate": 0.01, **QUIET}
    model = adapted()
    history = fit(
        model, counting_examples(), patience=2, keep_best=True, score=scored([0, 0.5, 0.7, 0.7, 0.1]), **settings,
        on_validation=lambda step, model: seen.update({step: trained(model)}),
    )  # fmt: skip
    assert history.scores == [(0, 0), (2, 0.5), (4, 0.7), (6, 0.7), (8, 0.1)] and len(history.loss) == 8
    assert history.best == (4, 0.7) and "best score 0.70 after 4 steps" in repr(history)
    assert all(torch.equal(p, seen[4][name]) for name, p in trained(model).items())
    assert any(not torch.equal(p, seen[8][name]) for name, p in trained(model).items())
    patient = fit(adapted(), counting_examples(), score=scored([0.9] + [0.1] * 10), **settings)
    assert len(patient.loss) == 20  # without patience it goes on to the end


def test_without_a_score_the_best_validation_is_the_lowest_loss():
    model, data = adapted(), counting_examples()
    history = fit(model, data, steps=12, validate_every=3, learning_rate=0.5, keep_best=True, validation=data, **QUIET)
    assert history.best == min(history.validation, key=lambda point: point[1])
    assert evaluate(model, data, bf16=False) == pytest.approx(history.best[1], rel=1e-5)
    assert history.best[1] < history.validation[-1][1]


def test_a_validation_is_needed_to_stop_by_and_its_score_is_a_number():
    for settings in ({"patience": 1}, {"keep_best": True}):
        with pytest.raises(ValueError, match="patience and keep_best need a validation"):
            fit(adapted(), counting_examples(), steps=1, **settings)
    for value in (math.nan, None, "0.5", True):
        with pytest.raises(ValueError, match="score must return a finite number, got .* after 0 steps"):
            fit(adapted(), counting_examples(), steps=1, score=lambda model, value=value: value, **QUIET)


def test_examples_that_cannot_be_learned_from_are_refused_by_number():
    good, nothing = counting_examples(2), torch.full((4,), IGNORE)
    for data in ([*good, (torch.arange(4), nothing)], [*good, (torch.arange(0), torch.arange(0))]):
        with pytest.raises(ValueError, match="training example 2 has nothing to learn: all of its targets are -100"):
            fit(adapted(), data, steps=1)
    for bad in ("text", torch.arange(4), (torch.arange(4),), (torch.arange(4), torch.arange(3)), ([1], [2])):
        with pytest.raises(ValueError, match="training example 2 is not a pair of token ids and targets"):
            fit(adapted(), [*good, bad], steps=1)
    with pytest.raises(ValueError, match="nothing to evaluate: every target of these 1 examples is -100"):
        evaluate(tiny(), [(torch.arange(4), nothing)])


def test_what_cannot_be_trained_as_it_stands_says_what_to_call():
    model, data = adapted(), counting_examples()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into the weights: call model.enable_lora_training\(\)"):
        fit(model, data, steps=1)
    model.enable_lora_training()
    for off in (model.disable_adapter, torch.no_grad):
        with off(), pytest.raises(ValueError, match="outside of disable_adapter and torch.no_grad"):
            fit(model, data, steps=1, progress=False)
    before = trained(model)
    fit(model, data, steps=1, progress=False)
    assert any(not torch.equal(p, before[name]) for name, p in trained(model).items())


def test_a_model_that_gives_a_tuple_trains_where_logits_come_first():
    class Tupled(nn.Module):  # as minGPT's
        def __init__(self, shape):
            super().__init__()
            self.inner, self.shape = tiny(), shape

        def forward(self, ids, targets=None):
            return self.shape(self.inner(ids))

    data = counting_examples()
    history = fit(Tupled(lambda logits: (logits, None)), data, steps=20, learning_rate=0.01, **QUIET)
    wanted = fit(Tupled(lambda logits: logits), data, steps=20, learning_rate=0.01, **QUIET)
    assert history.loss == wanted.loss and history.loss[-1] < history.loss[0]
    for shape, found in {
        "a tensor of \\(8, 1, 50\\)": lambda logits: (logits[:, -1:], None),  # as nanoGPT's without targets
        "a tensor of \\(\\)": lambda logits: (logits.sum(), logits),
        "tuple": lambda logits: (),
        "NoneType": lambda logits: None,
        "dict": lambda logits: {"logits": logits},
    }.items():
        with pytest.raises(ValueError, match=rf"expected logits of \(8, 7, V\) .* got {shape}: wrap the model"):
            fit(Tupled(found), data, steps=1, **QUIET)
