"""Another kind of adapter is one class of your own: LoRA for an embedding, checked against Hugging Face PEFT."""

import copy

import pytest
import torch
from small_models import IDS, scatter, small, stir
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lib import AdapterError, LoRA, LoRAConfig, LoRALinear, PeftModel, get_peft_model


class EmbeddingLoRA(LoRA):
    """LoRA on a table: row i gains s·A[i]·B. A starts at zero and B random, as PEFT has it."""

    file_names = {"A": "lora_embedding_A", "B": "lora_embedding_B"}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.zeros_(self.A)
        nn.init.normal_(self.B)

    @classmethod
    def shape_of(cls, base: nn.Module) -> tuple[int, int]:
        if not isinstance(base, nn.Embedding):
            raise TypeError(f"EmbeddingLoRA wraps nn.Embedding, not {type(base).__name__}")
        return base.num_embeddings, base.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        return self.scale * F.embedding(ids, self.A) @ self.B


def trained(kind, targets):
    """A model with an adapter of this kind whose every tensor has moved."""
    model = get_peft_model(small(), targets, 4, 8, adapter_cls=kind)
    before = small()(IDS)
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-5)  # a new adapter changes nothing
    model.enable_lora_training()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        optimizer.step()
    assert not torch.allclose(model.eval()(IDS), before, atol=1e-3)
    return model


KINDS = [(EmbeddingLoRA, ["wte"])]


@pytest.mark.parametrize(("kind", "targets"), KINDS)
def test_one_class_trains_merges_switches_saves_and_opens(tmp_path, kind, targets):
    model = trained(kind, targets)
    out, base = model(IDS), small()(IDS)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(), tmp_path, adapter_cls=kind)
    assert torch.equal(again(IDS), out)
    assert torch.equal(copy.deepcopy(again)(IDS), out)
    again.merge_adapter()
    torch.testing.assert_close(again(IDS), out, atol=1e-5, rtol=1e-5)
    with again.disable_adapter():
        assert torch.equal(again(IDS), base)
    again.unmerge_adapter()
    again.add_adapter("plain", LoRAConfig(["c_attn"], r=2))
    again.set_adapter("plain")
    assert torch.equal(again(IDS), base)
    again.set_adapter("default")
    assert torch.equal(again(IDS), out)
    rows = again(IDS, adapter_names=["default", "__base__"])
    torch.testing.assert_close(rows, torch.stack([out[0], base[1]]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=f"'default' is {kind.__name__}, and only LoRA's changes add up"):
        again.add_weighted_adapter(["plain", "default"], [1, 1], "sum")
    with pytest.raises(AdapterError, match="is not a LoRA weight"):
        PeftModel.from_pretrained(small(), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "targets"), KINDS)
def test_peft_reads_and_writes_the_same(tmp_path, kind, targets):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    from lora_lib import load_model

    config = transformers.GPT2Config(vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, bos_token_id=0)
    scatter(transformers.GPT2LMHeadModel(config)).save_pretrained(tmp_path / "base")

    def theirs():
        return transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()

    def ours():
        return load_model(tmp_path / "base")

    model = stir(get_peft_model(ours(), targets, 4, 8, adapter_cls=kind), seed=4)
    for layer in model.lora_layers().values():
        nn.init.normal_(layer.adapters["default"].A, std=0.1)
    model.save_pretrained(tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(theirs(), tmp_path / "ours").eval()
    torch.testing.assert_close(opened(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)
    opened.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    again = PeftModel.from_pretrained(ours(), tmp_path / "theirs", adapter_cls=kind)
    assert torch.equal(again(IDS), model(IDS))


class Marked(LoRA, fusible=True):
    """A kind whose config says that it is one."""

    config_fields = {"marked": True}


def test_what_a_kind_writes_into_the_config_is_asked_for_when_it_is_read(tmp_path):
    model = stir(get_peft_model(small(), ["c_attn"], 2, adapter_cls=Marked))
    model.save_pretrained(tmp_path / "marked")
    assert torch.equal(PeftModel.from_pretrained(small(), tmp_path / "marked", adapter_cls=Marked)(IDS), model(IDS))
    with pytest.raises(AdapterError, match="marked = True is not supported here"):
        PeftModel.from_pretrained(small(), tmp_path / "marked")
    get_peft_model(small(), ["c_attn"], 2).save_pretrained(tmp_path / "plain")
    with pytest.raises(AdapterError, match="marked = None, but its kind of adapter needs True"):
        PeftModel.from_pretrained(small(), tmp_path / "plain", adapter_cls=Marked)


def test_a_single_layer_takes_another_kind_too():
    table = LoRALinear(nn.Embedding(6, 5), 2, adapter_cls=EmbeddingLoRA)
    assert torch.equal(table(IDS[0, :4]), table.base(IDS[0, :4]))
    with pytest.raises(TypeError, match="EmbeddingLoRA wraps nn.Embedding, not Linear"):
        LoRALinear(nn.Linear(6, 5), 2, adapter_cls=EmbeddingLoRA)
