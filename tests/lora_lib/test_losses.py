"""The loss: the plain one, and the one that never holds all logits."""

import pytest
import torch
from small_models import TINY, adapted, tiny
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lora_lib import GPT2Config, GPT2Model, get_peft_model
from lora_lib.data import IGNORE
from lora_lib.gpt2 import loss as chunked
from lora_lib.training import loss_sum


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        tensors = out if isinstance(out, (tuple, list)) else [out]
        self.numbers = max(self.numbers, *(t.numel() for t in tensors if isinstance(t, torch.Tensor)), 0)
        return out


def plain_loss_sum(model, ids, targets):
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("make", [tiny, adapted, lambda: get_peft_model(tiny(), ["c_attn"], 2).enable_lora_training()])
def test_the_chunked_loss_is_the_plain_one_in_value_and_gradients(make, monkeypatch):
    monkeypatch.setattr(chunked, "LOGITS", 150)  # three tokens at a time
    model, ids = make(), torch.randint(50, (3, 10))
    if hasattr(model, "lora_layers"):
        for layer in model.lora_layers().values():
            nn.init.normal_(layer.adapters["default"].B, std=0.1)
    targets = ids.roll(-1, 1).masked_fill(torch.rand(3, 10) < 0.4, IGNORE)
    learned = [p for p in model.parameters() if p.requires_grad]
    values = [loss_sum(model, ids, targets), plain_loss_sum(model, ids, targets)]
    torch.testing.assert_close(*values)
    for ours, plain in zip(*(torch.autograd.grad(loss / 7, learned) for loss in values), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loss_sum(model, ids, targets), values[1])


def test_the_chunked_loss_of_doubles_is_summed_in_doubles(monkeypatch):
    monkeypatch.setattr(chunked, "LOGITS", 150)
    model, ids = tiny().double(), torch.randint(50, (3, 10))
    found = loss_sum(model, ids, ids.roll(-1, 1))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, plain_loss_sum(model, ids, ids.roll(-1, 1)), rtol=1e-12, atol=0)


def test_the_chunked_loss_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(chunked, "LOGITS", 500)
    torch.manual_seed(0)
    for vocabulary in (100, 400):  # a larger vocabulary makes the chunks shorter, not heavier
        config = GPT2Config(vocab_size=vocabulary, n_positions=16, n_embd=4, n_head=1, n_layer=1)
        model = get_peft_model(GPT2Model(config), "all-linear", 2).enable_lora_training()
        ids = torch.randint(vocabulary, (4, 16))
        with Largest() as seen:
            loss_sum(model, ids, ids).backward()
        with Largest() as plain:
            plain_loss_sum(model, ids, ids).backward()
        assert plain.numbers == 64 * vocabulary and seen.numbers <= max(500, 4 * vocabulary, 4 * 16 * 16)


@pytest.mark.parametrize("make", [tiny, adapted])
def test_the_chunked_loss_costs_no_flop_more_than_the_plain_one(make, monkeypatch):
    monkeypatch.setattr(chunked, "LOGITS", 150)
    model, ids, counts = make(), torch.randint(50, (3, 10)), []
    for loss in (loss_sum, plain_loss_sum):
        with FlopCounterMode(display=False) as counter:
            loss(model, ids, ids).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("wrap", [False, True])
def test_a_hugging_face_model_makes_logits_only_where_something_is_learned(wrap):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(vocab_size=300, **sizes))
    if wrap:
        model = get_peft_model(model, "all-linear", 2).enable_lora_training()
        for layer in model.lora_layers().values():
            nn.init.normal_(layer.adapters["default"].B, std=0.1)
    ids = torch.randint(300, (2, 40))
    targets = ids.roll(-1, 1)
    targets[0, :36], targets[1, :34], targets[1, 38:] = IGNORE, IGNORE, IGNORE
    learned = [p for p in model.parameters() if p.requires_grad]
    with Largest() as seen:
        ours = loss_sum(model, ids, targets)
    assert seen.numbers <= 2 * 6 * 300  # six of forty positions
    plain = F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(ours, plain)
    for a, b in zip(*(torch.autograd.grad(loss, learned) for loss in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    nothing = loss_sum(model, ids, torch.full_like(ids, IGNORE))
    assert nothing == 0 and all(
        not grad.any() for grad in torch.autograd.grad(nothing, learned, materialize_grads=True)
    )


def test_a_batch_without_targets_has_no_loss_and_gradients_of_zero():
    model, ids = adapted(), torch.arange(6)[None]
    loss = loss_sum(model, ids, torch.full_like(ids, IGNORE))
    loss.backward()
    assert loss == 0 and all(not p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("make", [tiny, adapted])
@pytest.mark.parametrize("hang", ["hook", "pre hook", "forward", "global hook"])
def test_what_hangs_on_a_model_is_not_passed_over(make, hang):
    model, ids, seen = make(), torch.arange(6)[None], []
    plain = model.forward
    if hang == "hook":
        model.register_forward_hook(lambda *args: seen.append(1))
    elif hang == "pre hook":
        model.register_forward_pre_hook(lambda *args: seen.append(1))
    elif hang == "forward":
        model.forward = lambda ids: (seen.append(1), plain(ids))[1]
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module is model))
    loss = loss_sum(model, ids, ids)
    if hang == "global hook":
        handle.remove()
    assert any(seen)
    torch.testing.assert_close(loss, loss_sum(make(), ids, ids))


def test_a_models_own_loss_is_taken():
    class Own(nn.Module):
        def loss_sum(self, ids, targets):
            return torch.tensor(7.0)

    assert loss_sum(Own(), torch.arange(6)[None], torch.arange(6)[None]) == 7


def test_a_readers_own_forward_is_not_passed_over():
    class Shifted(GPT2Model):
        def forward(self, ids, cache=None):
            return super().forward(ids, cache) * 2

    torch.manual_seed(0)
    model, ids = Shifted(TINY), torch.arange(6)[None]
    torch.testing.assert_close(loss_sum(model, ids, ids), plain_loss_sum(model, ids, ids))
