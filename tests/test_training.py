"""Training and generation, on a model small enough to be quick."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_lib import GPT2Config, GPT2Model, get_peft_model, load_pretrained
from lora_lib.data import IGNORE
from lora_lib.generation import generate_text
from lora_lib.training import evaluate, fit, loss_sum, lr_factor

SMALL = GPT2Config(
    vocab_size=50, n_positions=16, n_embd=16, n_head=2, n_layer=1, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
)


def small(seed: int = 0) -> GPT2Model:
    torch.manual_seed(seed)
    return GPT2Model(SMALL)


def adapted(seed: int = 0):
    return get_peft_model(small(seed), ["c_attn", "c_proj", "c_fc", "out_head"], 4, 8).enable_lora_training()


def examples(count: int = 8):
    """Sequences of several lengths that count upwards, their first two targets masked."""
    made = []
    for i in range(count):
        tokens = torch.arange(i, i + 5 + i % 4) % 50
        targets = tokens[1:].clone()
        targets[:2] = IGNORE
        made.append((tokens[:-1], targets))
    return made


def test_fit_learns_with_the_adapter_and_leaves_the_base_alone():
    model = adapted()
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    history = fit(
        model, examples(), steps=60, batch_size=4, learning_rate=0.03, validation=examples(), bf16=False, progress=False
    )
    assert history.validation[-1][1] < 0.7 * history.validation[0][1]
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    assert len(history.loss) == len(history.learning_rate) == 60 and history.tokens > 0
    assert "60 steps" in repr(history)


def test_the_same_seed_gives_the_same_run_and_the_callers_random_state_stays():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    runs = [fit(adapted(), examples(), steps=5, batch_size=4, seed=s, progress=False).loss for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    torch.manual_seed(7)
    model = adapted(seed=3)
    torch.manual_seed(7)
    fit(model, examples(), steps=2, progress=False)
    assert torch.equal(torch.rand(3), wanted)


def test_accumulated_batches_weigh_every_token_alike():
    whole, parts = adapted(), adapted()
    kwargs = {"steps": 1, "learning_rate": 0.01, "clip": math.inf, "bf16": False, "progress": False}
    fit(whole, examples(8), batch_size=8, **kwargs)
    fit(parts, examples(8), batch_size=2, accumulate=4, **kwargs)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0, msg=name)


def test_masked_targets_carry_no_loss():
    model = small()
    ids, targets = torch.arange(6)[None], torch.tensor([[IGNORE, IGNORE, 3, 4, 5, IGNORE]])
    wanted = F.cross_entropy(model(ids)[0, 2:5], targets[0, 2:5], reduction="sum")
    torch.testing.assert_close(loss_sum(model, ids, targets), wanted)


def test_evaluate_is_the_mean_over_tokens_not_over_batches():
    model, data = small(), examples(7)
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
        adapted(), examples(), steps=7, validation=examples(2), validate_every=3, progress=False,
        on_validation=lambda step, model: seen.append((step, model.training)),
    )  # fmt: skip
    assert [step for step, _ in history.validation] == [step for step, _ in seen] == [0, 3, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        model.base_model.ln_f.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        fit(model, examples(), steps=3, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if p.requires_grad)


def test_nothing_to_train_and_nothing_to_train_on():
    with pytest.raises(ValueError, match="call model.enable_lora_training"):
        fit(small().requires_grad_(False), examples(), steps=1)
    with pytest.raises(ValueError, match="the training set is empty"):
        fit(small(), [], steps=1)


def test_models_with_hugging_faces_output_train_too():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, ids):
            return type("Output", (), {"logits": self.inner(ids)})

    history = fit(Wrapped(), examples(), steps=20, learning_rate=0.01, progress=False)
    assert history.loss[-1] < history.loss[0]


def test_generated_text_is_the_same_in_a_batch_and_alone():
    model, tokenizer = load_pretrained("gpt2-mini")
    prompts = ["Once upon a time there was a little", "The", "She looked at the moon and said that it was"]
    together = generate_text(model, tokenizer, prompts, 12, batch_size=2)
    assert together == [generate_text(model, tokenizer, p, 12)[0] for p in prompts]
    assert all(text and "<|endoftext|>" not in text for text in together)


def test_gradients_are_clipped():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    fit(model, examples(), steps=2, clip=0.0, progress=False)  # to nothing: no weight may move
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
