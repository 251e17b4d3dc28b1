"""Training and generation, on a model small enough to be quick."""

import math

import pytest
import torch
from small_models import adapted, counting_examples, tiny
from torch import nn
from torch.nn import functional as F

from lora_lib import GPT2Config, GPT2Model, get_peft_model, load_pretrained
from lora_lib.examples import IGNORE
from lora_lib.generation import generate_text
from lora_lib.losses import loss_sum
from lora_lib.training import evaluate, fit, lr_factor


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
    assert "60 steps" in repr(history)


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
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        fit(model, counting_examples(), steps=3, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if p.requires_grad)


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


def test_gradients_are_clipped():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    fit(model, counting_examples(), steps=2, clip=0.0, progress=False)  # to nothing: no weight may move
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
