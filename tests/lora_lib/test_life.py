"""A model's whole life, lived twice: here and in PEFT, through the same random operations.

After each one the logits, the gradients and the names of what is trained agree, or both have refused; each opens what
the other saves. What differs on purpose is a table in book/troubleshooting.md.

`LIFE=2000 pytest tests/lora_lib/test_life.py` tries so many lives of each model, new ones each time.
"""

import copy
import os
import re
import warnings

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from small_models import scatter
from torch import nn

from lora_lib import LoRAConfig, PeftModel, get_peft_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LIVES = int(os.environ.get("LIFE", 0))
BATCH = torch.arange(8).view(2, 4)
NAMES = ["default", "b", "c"]
FIELDS = (
    "use_rslora use_dora modules_to_save exclude_modules layers_to_transform rank_pattern alpha_pattern layers_pattern "
    "init_lora_weights"
).split()
CHOOSE = ["exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora"]


class Towers(nn.Module):
    """Names that end in others, numbers at the top level, a norm, and a layer that stands in two places."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(31, 8)
        self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(8, 8), "up": nn.Linear(8, 8)}) for _ in "12"])
        self.vision = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(8, 8)}) for _ in "12"])})
        self.again = self.layers[0]["up"]
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 31)

    def forward(self, ids):
        x = self.embed(ids)
        for layer, seen in zip(self.layers, self.vision["layers"]):
            x = x + torch.tanh(layer["up"](torch.tanh(layer["proj"](x)))) + torch.tanh(seen["proj"](x))
        return self.head(self.norm(x + torch.tanh(self.again(x))))


def gpt2():
    sizes = {"vocab_size": 31, "n_positions": 8, "n_embd": 8, "n_head": 2, "n_layer": 2, "bos_token_id": 0}
    off = {"embd_pdrop": 0, "resid_pdrop": 0, "attn_pdrop": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **off))


def llama():
    sizes = {"vocab_size": 31, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))


MODELS = {  # each with names of layers, a module to train in full, a regular expression, and layers to leave out
    "gpt2": (gpt2, ["c_attn", "mlp.c_proj", "h.0.mlp.c_fc"], "ln_f", r".*\.h\.1\.attn\.c_.*", ["h.1.attn.c_attn"]),
    "llama": (llama, ["q_proj", "v_proj", "layers.1.mlp.up_proj"], "model.norm", r".*mlp\.(up|down)_proj", ["v_proj"]),
    "towers": (Towers, ["proj", "up", "layers.1.up"], "norm", r".*\.proj", r"vision\..*"),
}


@st.composite
def configs(draw, model):
    """What a new adapter may be; some cannot be made in either library."""
    _, targets, full, pattern, out = MODELS[model]
    lists = st.lists(st.sampled_from(targets), min_size=1, max_size=3, unique=True)
    target_modules = draw(st.one_of(lists, lists, st.sampled_from(["all-linear", pattern, ["nothing"]])))
    chosen = draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True))
    some = isinstance(target_modules, list) and not {"exclude_modules", "layers_to_transform"} & {*chosen}
    key = target_modules[0] if some else ".*"
    more = {
        "use_rslora": st.just(True), "use_dora": st.just(True), "modules_to_save": st.just([full]),
        "exclude_modules": st.just(out), "layers_to_transform": st.sampled_from([0, [1], [0, 1], [5]]),
        "rank_pattern": st.just({key: 4}), "alpha_pattern": st.just({key: 3}),
        "layers_pattern": st.just("h" if model == "gpt2" else "layers"),
        "init_lora_weights": st.just("gaussian"),
    }  # fmt: skip
    return {
        "target_modules": target_modules,
        "r": draw(st.integers(1, 3)), "lora_alpha": draw(st.sampled_from([1, 4, 6.5])),
        **{name: draw(more[name]) for name in chosen},
    }  # fmt: skip


def operations(model):
    name = st.integers(0, 5)  # which of the adapters that are there; 5 stands for one that is not
    some = st.lists(st.integers(0, 2), min_size=1, max_size=3) | st.lists(name, min_size=1, max_size=3)
    alone = ["merge", "unmerge", "disable", "copy", "state", "train", "thaw", "thaw", "unload", "keep"]
    return st.one_of(
        st.tuples(st.just("add"), st.sampled_from(NAMES), configs(model)),
        st.tuples(st.just("set"), some),
        st.tuples(st.just("sum"), some, st.sampled_from([(1, 1, 1), (0.5, -2, 1)])),
        st.tuples(st.just("delete"), name),
        st.tuples(st.just("file"), name),
        *(st.tuples(st.just(what)) for what in alone),
    )


def lives(model):
    """Two adapters, and then anything."""
    adds = [st.tuples(st.just("add"), st.just(name), configs(model)) for name in NAMES[:2]]
    return st.tuples(*adds, st.lists(operations(model), min_size=6, max_size=20)).map(
        lambda life: [*life[:-1], *life[-1]]
    )


class Life:
    """One model in both libraries."""

    def __init__(self, make, folder):
        self.base, self.folder = scatter(make()), folder
        self.ours = self.theirs = None
        self.steps = 0

    def live(self, operations):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for what, *how in operations:
                if self.ours is not None or what == "add":
                    self.steps += 1
                    getattr(self, what)(*how if what == "add" else map(self.named, how))
                if self.ours is not None:
                    self.agree()

    def named(self, value):
        """An adapter's name for its number."""
        if isinstance(value, list):
            return list(dict.fromkeys(map(self.named, value)))
        there = list(self.ours.peft_config)
        return value if not isinstance(value, int) else "nobody" if value == 5 else there[value % len(there)]

    # --- what is compared -------------------------------------------------------------------------

    def canonical(self, named, theirs):
        """Parameters or gradients under our names, A and B in our layout."""
        found = {}
        for name, tensor in named:
            name = name.removeprefix("base_model.")
            if theirs:
                name = (
                    name.removeprefix("model.").replace(".base_layer.", ".base.").replace(".original_module.", ".base.")
                )
                name = re.sub(r"\.lora_([AB])\.(\w+)\.weight", r".adapters.\2.\1", name)
                name = re.sub(r"\.lora_magnitude_vector\.(\w+)\.weight", r".adapters.\1.m", name)
                name = re.sub(r"\.modules_to_save\.", ".adapters.", name)
                tensor = tensor.T if name.endswith((".A", ".B")) else tensor
            found[name] = tensor
        return found

    def both(self, of):
        return self.canonical(of(self.ours), False), self.canonical(of(self.theirs), True)

    @property
    def merged(self):
        return any(layer.merged for layer in self.ours.lora_layers().values())

    def agree(self):
        same(logits(self.ours), logits(self.theirs))
        ours, theirs = self.both(lambda model: [(n, p) for n, p in model.named_parameters() if p.requires_grad])
        assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
        if ours and not self.merged:
            ours, theirs = self.both(gradients)
            assert ours.keys() == theirs.keys()
            for name, gradient in ours.items():
                same(gradient, theirs[name])

    # --- what is done -----------------------------------------------------------------------------

    def add(self, name, config):
        if self.ours is None:
            ours, theirs = copy.deepcopy(self.base), copy.deepcopy(self.base)
            made = attempt(lambda: get_peft_model(ours, LoRAConfig(**config), adapter_name=name))
            there = attempt(lambda: peft.get_peft_model(theirs, peft.LoraConfig(**config), name))
            both_or_none(made, there)
            if isinstance(made, Exception):
                return
            self.ours, self.theirs = made, there
        elif not self.try_both(
            lambda: self.ours.add_adapter(name, LoRAConfig(**config)),
            lambda: self.theirs.add_adapter(name, peft.LoraConfig(**config)),
        ):
            return
        self.fill(name)

    def fill(self, name):
        """The same random numbers for a new adapter in both."""
        ours, theirs = self.both(lambda model: model.named_parameters())
        torch.manual_seed(self.steps)
        with torch.no_grad():
            for key, tensor in ours.items():
                if f".adapters.{name}." in key and not key.endswith(".m"):
                    tensor.copy_(torch.randn_like(tensor) * 0.3)
                    theirs[key].copy_(tensor)

    def set(self, names):
        if set(names) - self.ours.peft_config.keys():
            with pytest.raises(ValueError, match="no adapter called"):
                self.ours.set_adapter(names)
            return
        if any(self.ours.peft_config[name].use_dora for name in names):
            names = names[:1]  # in PEFT a sum with DoRA depends on the order
        done = self.try_both(lambda: self.ours.set_adapter(names), lambda: self.theirs.base_model.set_adapter(names))
        if done:
            self.theirs.active_adapter = names[0]
            self.unmerge()  # here it stays merged, in PEFT it does not

    def sum(self, names, weights):
        weights, configs = weights[: len(names)], [self.ours.peft_config.get(name) for name in names]
        if "sum" in self.ours.peft_config or not all(c and not c.use_dora and not c.modules_to_save for c in configs):
            with pytest.raises(ValueError, match="no adapter|already|is DoRA|in full"):
                self.ours.add_weighted_adapter(names, weights, "sum")
            return
        self.ours.add_weighted_adapter(names, weights, "sum")
        active = self.ours.active_adapters
        if all(isinstance(c.target_modules, list) and not any(getattr(c, f) for f in CHOOSE) for c in configs):
            self.theirs.add_weighted_adapter(names, weights, "sum", "cat")
            self.set(["sum"])
            same(logits(self.ours), logits(self.theirs))
            self.set(active)
            self.theirs.delete_adapter("sum")  # it has the weights in A, where here they are in B
        self.ours.save_pretrained(self.folder / "sum", "sum")
        self.theirs.load_adapter(self.folder / "sum", "sum")
        self.set(["sum"])
        same(logits(self.ours), logits(self.theirs))
        self.set(active)

    def delete(self, name):
        """Not while merged, and not the last one; of the rest one is chosen, as nothing is active here then."""
        left = [other for other in self.ours.peft_config if other != name]
        if left:
            self.unmerge()
            self.try_both(lambda: self.ours.delete_adapter(name), lambda: self.theirs.delete_adapter(name))
            if not self.ours.active_adapters:
                self.set(left[:1])

    def disable(self):
        with self.ours.disable_adapter(), self.theirs.disable_adapter():
            same(logits(self.ours), logits(self.theirs))
        self.unmerge()  # here it is merged again afterwards, in PEFT it is not

    def merge(self):
        self.try_both(self.ours.merge_adapter, self.theirs.merge_adapter)

    def unmerge(self):
        self.try_both(self.ours.unmerge_adapter, self.theirs.unmerge_adapter)

    def copy(self):
        self.ours, self.theirs = copy.deepcopy(self.ours), copy.deepcopy(self.theirs)

    def state(self):
        self.unmerge()
        for model in (self.ours, self.theirs):
            kept = copy.deepcopy(model.state_dict())
            with torch.no_grad():
                for p in model.parameters():
                    p.zero_()
            model.load_state_dict(kept)

    def unload(self):
        self.unmerge()
        with self.ours.disable_adapter():
            base = logits(self.ours)
        full = any(self.ours.peft_config[name].modules_to_save for name in self.ours.active_adapters)
        ours, theirs = self.ours.unload(), self.theirs.unload()
        same(logits(ours), base)
        self.left(ours, ours if full else theirs)  # PEFT leaves the copy that was trained in full

    def keep(self):
        ours, theirs = self.ours.merge_and_unload(), self.theirs.merge_and_unload()
        self.left(ours, theirs)

    def left(self, ours, theirs):
        same(logits(ours), logits(theirs))
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        self.ours, self.theirs, self.base = None, None, ours

    def thaw(self):
        for model in (self.ours, self.theirs):
            for name, p in model.named_parameters():
                if name.endswith(("embed.weight", "wpe.weight", "embed_tokens.weight")):
                    p.requires_grad_(True)

    def train(self):
        self.unmerge()
        for model in (self.ours, self.theirs):
            for p, (_, gradient) in zip((p for p in model.parameters() if p.requires_grad), gradients(model)):
                p.data.sub_(gradient, alpha=0.1)

    def file(self, name):
        """Save in both, open what both saved in both."""
        ours, theirs = self.folder / f"ours-{name}", self.folder / f"theirs-{name}"
        saved = self.try_both(
            lambda: self.ours.save_pretrained(ours, name),
            lambda: self.theirs.save_pretrained(theirs, selected_adapters=[name]),
        )
        if not saved:
            return
        theirs = theirs if name == "default" else theirs / name
        base = copy.deepcopy(self.ours).unload()
        found = [logits(PeftModel.from_pretrained(copy.deepcopy(base), folder)) for folder in (ours, theirs)]
        found += [logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)) for folder in (ours, theirs)]
        for one in found[1:]:
            same(one, found[0])
        if self.ours.active_adapters == [name]:
            same(logits(self.ours), found[0])

    def try_both(self, ours, theirs):
        """Do it in both, or see both refuse; what PEFT refuses half-way is put back."""
        before = copy.deepcopy(self.theirs)
        done, there = attempt(ours), attempt(theirs)
        both_or_none(done, there)
        if isinstance(there, Exception):
            self.theirs = before
        return not isinstance(done, Exception)


def attempt(act):
    try:
        return act()
    except Exception as error:
        return error


def both_or_none(ours, theirs):
    assert isinstance(ours, Exception) == isinstance(theirs, Exception), f"ours: {ours!r}, PEFT's: {theirs!r}"


def logits(model):
    with torch.no_grad():
        output = model.eval()(BATCH)
    return getattr(output, "logits", output)


def gradients(model):
    """The gradients of a loss, by the parameters' own names."""
    model.zero_grad()
    output = model.train()(BATCH)
    getattr(output, "logits", output).square().mean().backward()
    found = [(n, p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None]
    model.zero_grad()
    return found


def same(a, b):
    assert a.shape == b.shape and (a - b).abs().max() <= 2e-5 * max(1, b.abs().max())


@pytest.mark.parametrize("model", MODELS)
def test_a_whole_life_is_that_of_peft(model, tmp_path):
    one = {"target_modules": MODELS[model][1][:1], "r": 2, "lora_alpha": 4}
    single_layers = [("add", NAMES[i], {**one, "layers_to_transform": [i]}) for i in range(2)]

    @settings(
        max_examples=LIVES or 60, derandomize=not LIVES, deadline=None, database=None, report_multiple_bugs=False,
        phases=[*Phase] if LIVES else [Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(lives(model))
    @example([*single_layers, ("sum", [0, 1], (1, 1, 1)), ("file", 2)])
    def live(operations):
        Life(MODELS[model][0], tmp_path).live(operations)

    live()
