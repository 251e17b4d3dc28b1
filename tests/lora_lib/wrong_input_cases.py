"""What is wrong, and what is said: the cases of the page book/wrong_input.md."""

import errno
import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import IDS, SMALL, small, stir, three_adapters
from torch import nn
from torch.nn.utils import prune

from lora_book.measure import quantise_model
from lora_book.tasks import downloads, load_sms_spam
from lora_lib import (
    AdapterError,
    GPT2Config,
    GPT2Model,
    LoRAConfig,
    LoRALinear,
    PeftModel,
    Tokenizer,
    get_peft_model,
    load_pretrained,
)
from lora_lib.adapters import CONFIG_FILE, WEIGHTS_FILE
from lora_lib.data import encode_chat, encode_examples, judge_answers, read_records, read_text, split
from lora_lib.gpt2 import MINI_FOLDER
from lora_lib.run.commands import RunConfig, read_parts, train
from lora_lib.training import evaluate, fit


class Case(NamedTuple):
    what: str  # in the words of the page
    error: type[BaseException] | tuple[type[BaseException], ...]
    message: str  # what the message says, word for word; "…" stands for anything
    act: Callable[[SimpleNamespace], object]


def inject(*args, **kwargs):
    return lambda at: get_peft_model(at.base, *args, **kwargs)


def open_it(at):
    return PeftModel.from_pretrained(at.base, at.folder)


def with_config(**changes):
    """Open the adapter after its config was edited; None takes a field out."""

    def act(at):
        path = at.folder / CONFIG_FILE
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        open_it(at)

    return act


def with_tensors(edit):
    """Open the adapter after its tensors were edited, as by another program: without our checksum."""

    def act(at):
        tensors = load_file(at.folder / WEIGHTS_FILE)
        edit(tensors)
        save_file(tensors, at.folder / WEIGHTS_FILE)
        open_it(at)

    return act


def with_bytes(file, edit):
    """Open the adapter after the bytes of a file were edited."""

    def act(at):
        (at.folder / file).write_bytes(edit((at.folder / file).read_bytes()))
        open_it(at)

    return act


def onto(**changes):
    """Open the adapter on a GPT-2 of other sizes."""
    return lambda at: PeftModel.from_pretrained(GPT2Model(GPT2Config(**{**vars(SMALL), **changes})), at.folder)


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


KEY = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
TWIN = KEY.replace("lora_A", "lora_B")


def saving(during):
    """Save over the adapter that is there while something happens to the disk; the old one must survive."""

    def act(at):
        before = {p.name: p.read_bytes() for p in at.folder.iterdir()}
        at.monkeypatch.setattr("lora_lib.tensor_files.save_file", during)
        stir(at.model, seed=7)
        try:
            at.model.save_pretrained(at.folder)
        finally:
            assert {p.name: p.read_bytes() for p in at.folder.iterdir()} == before
            stir(at.model)

    return act


def fails(code):
    def write(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(code, "No space left on device" if code == errno.ENOSPC else "Read-only file system")

    return write


def is_interrupted(tensors, path, metadata):
    path.write_bytes(b"half")
    raise KeyboardInterrupt("while saving")


def foreign_rank(at):
    """The adapter of another program, without our checksum, whose config has an absurd rank."""
    save_file(load_file(at.folder / WEIGHTS_FILE), at.folder / WEIGHTS_FILE)
    with_config(r=20_000_000)(at)


def with_nan(at):
    model = stir(get_peft_model(at.base, ["c_attn"], 4))
    with torch.no_grad():
        model.lora_layers()["h.0.attn.c_attn"].adapters["default"].B[0, 0] = float("nan")
    at.unwrap = model
    return model


def save_nan(at):
    with_nan(at).save_pretrained(at.folder)


def merged_while_off(at):
    with at.model.disable_adapter():
        at.model.merge_adapter()


def unmerged_while_off(at):
    with at.model.disable_adapter():
        at.model.unmerge_adapter()


def switched_while_off(at):
    with at.model.disable_adapter():
        at.model.set_adapter("b")


def adapted_by_peft(at):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), peft.LoraConfig(target_modules=["0"]))
    get_peft_model(theirs, "all-linear")


class ReadsTheWeight(nn.Module):
    """A model that computes with its layer's weight instead of calling the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x @ self.layer.weight


def rows_of_a_weight(at):
    model = get_peft_model(ReadsTheWeight(), ["layer"], 2).eval()
    model(torch.zeros(2, 4), adapter_names=["default", "__base__"])


def pruned(at):
    layer = LoRALinear(nn.Linear(4, 4), 2)
    prune.identity(layer.base, "weight")
    layer.merge()


def quantised_twice(at):
    model = quantise_model(small())
    quantise_model(model)


def merged_weights(at):
    merged = three_adapters()
    merged.merge_adapter()
    at.model.load_state_dict(merged.state_dict())


def merged_rows(at):
    at.model.merge_adapter()
    try:
        at.model(IDS, adapter_names=["default", "b"])
    finally:
        at.model.unmerge_adapter()


def training_rows(at):
    try:
        at.model.train()(IDS, adapter_names=["default", "b"])
    finally:
        at.model.eval()


def quantised(at):
    layer = LoRALinear(nn.Linear(4, 4), 2)
    layer.base.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    layer.merge()


def spent(then):
    """Go on with a wrapper whose adapters were taken out."""

    def act(at):
        model = get_peft_model(at.base, ["c_attn"], 4)
        model.unload()
        then(model, at)

    return act


def mini(at, **edits):
    """gpt2-mini's folder, spoiled: `edits` are for config.json, or new bytes for its weights."""
    folder = at.tmp / "mini"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "bpe.tiktoken"):
        (folder / name).write_bytes((MINI_FOLDER / name).read_bytes())
    weights = edits.pop("weights", None)
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    values = {**json.loads((folder / "config.json").read_text()), **edits}
    (folder / "config.json").write_text(json.dumps(values))
    return load_pretrained(folder)


def no_tokenizer(at):
    folder = at.tmp / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((MINI_FOLDER / name).read_bytes())
    load_pretrained(folder)


def empty_tokenizer(at):
    (at.tmp / "bpe.tiktoken").touch()
    Tokenizer.from_file(at.tmp / "bpe.tiktoken")


DATA = [(IDS[0], IDS[1])]


def trainable(at):
    """The plain model with an adapter to train, which is taken out again after the case."""
    at.unwrap = get_peft_model(at.base, ["c_attn"], 4).enable_lora_training()
    return at.unwrap


class ReturnsTwo(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class SeesAhead(nn.Module):
    """Each position sees the mean over all, as in a model for masked words; `config` is what Hugging Face's have."""

    config = None

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(97, 97)

    def forward(self, ids):
        x = self.table(ids)
        return x + x.mean(1, keepdim=True)


def another_validation(at):
    model, settings = trainable(at), {"steps": 1, "progress": False, "checkpoint": at.tmp / "run.safetensors"}
    try:
        fit(model, DATA, validation=DATA, **settings)
    finally:
        with torch.no_grad():
            [p.zero_() for name, p in model.named_parameters() if name.endswith(".B")]
    fit(model, DATA, validation=[(IDS[1], IDS[0])], **settings)


def test_on_training_data(at):
    path = at.tmp / "rows.csv"
    path.write_text(CSV)
    read_parts(RunConfig(str(path), "out", test=str(path)))


class LastLogits(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids):
        return self.inner(ids)[:, -1:]


def merged_training(at):
    model = trainable(at)
    model.merge_adapter()
    fit(model, DATA, steps=1)


def nan_loss(at, at_step=2):
    model, table, kept = trainable(at), at.base.wte.weight.data.clone(), []

    def spoil(step, model):
        kept[:] = [p.clone() for p in model.parameters() if p.requires_grad]
        if step == at_step - 1:
            at.base.wte.weight.data[5] = float("nan")  # a loss is NaN from the first step that reads token 5

    try:
        fit(model, DATA, steps=3, progress=False, validate_every=1, on_validation=spoil)
    finally:
        at.base.wte.weight.data.copy_(table)
        assert all(torch.equal(p, q) for p, q in zip((p for p in model.parameters() if p.requires_grad), kept))


CSV = "prompt,completion\na,b\n"


def chat(**more):
    """One line of a file: a question, and an answer with something more in it."""
    return json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **more}]})


def reading(name, content):
    def act(at):
        (at.tmp / name).write_text(content, encoding="utf8")
        read_records(at.tmp / name)

    return act


def config(**values):
    def act(at):
        (at.tmp / "run.json").write_text(json.dumps({"data": "restaurants", "output": "out", **values}))
        RunConfig.read(at.tmp / "run.json")

    return act


def offline(at):
    source = downloads._SOURCES
    key = "sms_spam/SMSSpamCollection"
    at.monkeypatch.setitem(source, key, source[key]._replace(url="http://127.0.0.1:9/x.zip"))
    at.monkeypatch.setattr("pooch.os_cache", lambda name: at.tmp / name)
    at.monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    load_sms_spam()


def local_data(content):
    def act(at):
        at.monkeypatch.setenv("LORA_DATA_DIR", str(at.tmp))
        (at.tmp / "sms_spam").mkdir()
        if content is not None:
            (at.tmp / "sms_spam" / "SMSSpamCollection").write_bytes(content)
        load_sms_spam()

    return act


def without_gpu(at):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    at.base.to("cuda")


class Words(Tokenizer):
    """One token a word."""

    eot_token = 96

    def __init__(self):
        pass

    def encode(self, text):
        return [len(word) for word in text.split()]


CASES: dict[str, list[Case]] = {
    "Putting LoRA in": [
        Case(
            "a target that no layer has",
            ValueError,
            "target 'c_prj' matches no layer; did you mean 'c_proj'?",
            inject(["c_prj"]),
        ),
        Case(
            "one target that fits and one that does not",
            ValueError,
            "target 'q_proj' matches no layer…this model are called c_attn, c_fc, c_proj, out_head",
            inject(["c_attn", "q_proj"]),
        ),
        Case("the end of a word as a target", ValueError, "target 'proj' matches no layer", inject(["proj"])),
        Case(
            "an ambiguous target, which fits something else too",
            ValueError,
            "target '0' finds h.0 (Block), but LoRA wraps linear layers",
            inject(["0"]),
        ),
        Case(
            "a target that is not a linear layer",
            ValueError,
            "target 'ln_1' finds h.0.ln_1 (LayerNorm), but LoRA wraps linear layers",
            inject(["ln_1"]),
        ),
        Case(
            "a name without its list",
            ValueError,
            "the regular expression 'c_attn' matches no whole name of a layer…pass a list: ['c_attn']",
            inject("c_attn"),
        ),
        Case("a regular expression that is none", ValueError, "'(' is not a regular expression", inject("(")),
        Case("no target at all", ValueError, "target_modules is empty", inject([])),
        Case(
            "targets that are not names",
            ValueError,
            "target_modules must be a list of names, or a regular expression, got [3]",
            inject([3]),
        ),
        Case(
            "rank 0",
            ValueError,
            "r must be a whole number from 1, got 0",
            inject(["c_attn"], 0),
        ),
        Case(
            "a negative rank",
            ValueError,
            "r must be a whole number from 1, got -4",
            inject(["c_attn"], -4),
        ),
        Case(
            "a rank that is not whole", ValueError, "r must be a whole number from 1, got 2.5", inject(["c_attn"], 2.5)
        ),
        Case(
            "a rank above the layer's size",
            ValueError,
            "h.0.attn.c_attn: rank must be from 1 to 24 for a 24×72 layer, got 25",
            inject(["c_attn"], 25),
        ),
        Case(
            "a layer that takes its size from its first input",
            ValueError,
            "0: the layer has no weight yet (nn.LazyLinear): call the model once, and add LoRA then",
            lambda at: get_peft_model(nn.Sequential(nn.LazyLinear(8)), ["0"], 2),
        ),
        Case(
            "a linear layer that returns more than a tensor, as Llama 4's router does",
            TypeError,
            "this ReturnsTwo returns a tuple: name it in exclude_modules",
            lambda at: LoRALinear(ReturnsTwo(8, 8), 2)(torch.zeros(1, 8)),
        ),
        Case(
            "alpha 0",
            ValueError,
            "lora_alpha must be a number above 0, at most 1e30, got 0",
            inject(["c_attn"], 4, 0),
        ),
        Case(
            "a negative alpha",
            ValueError,
            "lora_alpha must be a number above 0, at most 1e30, got -16",
            inject(["c_attn"], 4, -16),
        ),
        Case(
            "an alpha that is not finite",
            ValueError,
            "lora_alpha must be a number above 0, at most 1e30, got nan",
            inject(["c_attn"], 4, float("nan")),
        ),
        Case(
            "an alpha in quotes",
            ValueError,
            "lora_alpha must be a number above 0, at most 1e30, got '16'",
            inject(["c_attn"], 4, "16"),
        ),
        Case(
            "dropout 1",
            ValueError,
            "lora_dropout must be a number in [0, 1), got 1.0",
            inject(["c_attn"], 4, 8, 1.0),
        ),
        Case(
            "a negative dropout",
            ValueError,
            "lora_dropout must be a number in [0, 1), got -0.1",
            inject(["c_attn"], 4, 8, -0.1),
        ),
        Case(
            "a pattern for a layer that is no target",
            ValueError,
            "rank_pattern or alpha_pattern names 'c_fc', which is none of the targets",
            inject(["c_attn"], rank_pattern={"c_fc": 2}),
        ),
        Case(
            "a pattern with rank 0",
            ValueError,
            "rank_pattern must be a whole number from 1 for each name, got {'c_attn': 0}",
            inject(["c_attn"], rank_pattern={"c_attn": 0}),
        ),
        Case(
            "a second injection into the same model",
            ValueError,
            "this model already has LoRA layers: add_adapter gives it another adapter",
            lambda at: get_peft_model(at.model.base_model, ["c_fc"]),
        ),
        Case(
            "wrapping a `PeftModel` again",
            ValueError,
            "this model already has LoRA layers",
            lambda at: get_peft_model(at.model, ["c_fc"]),
        ),
        Case(
            "what `load_pretrained` returns, whole",
            TypeError,
            "expected a model, an nn.Module, got a tuple: load_pretrained returns a pair, (model, tokenizer)",
            lambda at: get_peft_model((at.base, None), ["c_attn"]),
        ),
        Case(
            "a model without linear layers",
            ValueError,
            "there is no linear layer in this Sequential",
            lambda at: get_peft_model(nn.Sequential(nn.ReLU())),
        ),
        Case(
            "`LoRALinear` around another layer",
            TypeError,
            "LoRA wraps nn.Linear and Hugging Face's Conv1D, not Embedding",
            lambda at: LoRALinear(nn.Embedding(3, 4), 1),
        ),
        Case(
            "a layer whose forward is never called",
            TypeError,
            "not NonDynamicallyQuantizableLinear",
            lambda at: LoRALinear(nn.MultiheadAttention(8, 2).out_proj, 1),
        ),
        Case(
            "an initialisation that does not exist",
            ValueError,
            "init_lora_weights must be True, False, 'gaussian', 'pissa' or…got 'pisa'. Did you mean 'pissa'?",
            inject(["c_attn"], init_lora_weights="pisa"),
        ),
        Case(
            "single tokens to train",
            TypeError,
            "trainable_token_indices is not supported: train the whole embedding instead: put its name in modules…",
            inject(["c_attn"], trainable_token_indices=[1]),
        ),
        Case(
            "a module to save that the model does not have",
            ValueError,
            "modules_to_save names 'score', but no module of this GPT2Model is called that",
            inject(["c_attn"], modules_to_save=["score"]),
        ),
        Case(
            "a layers_pattern that is no regular expression",
            ValueError,
            "is not a regular expression",
            lambda at: get_peft_model(at.base, LoRAConfig(["c_attn"], layers_to_transform=[0], layers_pattern="(")),
        ),
        Case(
            "exclusions that leave no target",
            ValueError,
            "exclude_modules, layers_to_transform and modules_to_save leave none of the targets",
            inject(["c_attn"], exclude_modules=["attn.c_attn"]),
        ),
        Case(
            "a model that PEFT has adapted already",
            ValueError,
            "PEFT has adapted this model: call its merge_and_unload or unload, and wrap what that returns",
            adapted_by_peft,
        ),
        Case(
            "one setting under both of its names",
            TypeError,
            "r and lora_rank are the same setting: give one of them",
            inject(["c_attn"], r=4, lora_rank=4),
        ),
        Case(
            "a setting with a slip in its name",
            TypeError,
            "LoRAConfig has no setting 'lora_rnk'. Did you mean 'lora_rank'?",
            inject(["c_attn"], lora_rnk=4),
        ),
        Case(
            "a `LoRAConfig` and keywords beside it",
            TypeError,
            "give the settings in the LoRAConfig or as keywords, not both",
            inject(LoRAConfig(["c_attn"]), lora_rank=4),
        ),
        Case(
            "an adapter class that is not one",
            ValueError,
            "adapter_cls must be LoRA or a subclass of it",
            inject(["c_attn"], adapter_cls=nn.Linear),
        ),
        Case(
            "`all-linear` with a slip",
            ValueError,
            "'all_linear' matches no whole name of a layer…(did you mean 'all-linear'?)",
            inject("all_linear"),
        ),
        Case("an empty target", ValueError, "an empty text is among the target_modules", inject([""])),
    ],
    "Adapters by name": [
        Case(
            "switching to an unknown adapter",
            ValueError,
            "no adapter called 'x'; there are ['default', 'b', 'c']",
            lambda at: at.model.set_adapter("x"),
        ),
        Case(
            "deleting an unknown adapter", ValueError, "no adapter called 'x'", lambda at: at.model.delete_adapter("x")
        ),
        Case(
            "the same name twice",
            ValueError,
            "there is already an adapter called 'b'; delete_adapter removes it",
            lambda at: at.model.add_adapter("b", LoRAConfig(["c_fc"])),
        ),
        Case(
            "loading under a name that is taken",
            ValueError,
            "there is already an adapter called 'b'",
            lambda at: at.model.load_adapter(at.folder, "b", check_base=False),
        ),
        Case(
            "a path as a name",
            ValueError,
            "an adapter's name can have letters, digits, '_' and '-', got '../x'",
            lambda at: at.model.add_adapter("../x", LoRAConfig(["c_fc"])),
        ),
        Case(
            "a name that PyTorch's modules have a meaning for",
            ValueError,
            "an adapter cannot be called 'train': that name has a meaning here already",
            lambda at: at.model.add_adapter("train", LoRAConfig(["c_fc"])),
        ),
        Case(
            "an empty name",
            ValueError,
            "an adapter's name can have letters, digits, '_' and '-', got ''",
            lambda at: at.model.add_adapter("", LoRAConfig(["c_fc"])),
        ),
        Case(
            "a number as a name",
            ValueError,
            "an adapter's name can have letters, digits, '_' and '-', got 3",
            lambda at: at.model.add_adapter(3, LoRAConfig(["c_fc"])),
        ),
        Case(
            "a dict where a config is meant",
            TypeError,
            "expected lora_lib's LoRAConfig, got a dict: LoRAConfig(**fields)",
            lambda at: at.model.add_adapter("d", {"r": 3}),
        ),
        Case(
            "switching adapters while they are disabled",
            ValueError,
            "the adapters are disabled here: call set_adapter outside of disable_adapter",
            switched_while_off,
        ),
        Case(
            "rows with different adapters in a model that computes with a layer's weight",
            ValueError,
            "no single weight is right for all rows: run one batch for each adapter",
            rows_of_a_weight,
        ),
        Case(
            "merging into a weight that is pruned",
            ValueError,
            "cannot merge: the base layer computes its weight in each forward pass (pruning, weight norm",
            pruned,
        ),
        Case(
            "quantising a model twice",
            ValueError,
            "this model is quantised already: call dequantise_model first, or load the weights again",
            quantised_twice,
        ),
        Case(
            "saving while two adapters are in use",
            ValueError,
            "the active adapters are ['default', 'b']: say which of ['default', 'b', 'c'] to save",
            lambda at: at.two().save_pretrained(at.tmp),
        ),
        Case(
            "saving an adapter that is not there",
            ValueError,
            "no adapter called '../../x'",
            lambda at: at.model.save_pretrained(at.tmp, "../../x"),
        ),
        Case(
            "a weighted sum that is not one",
            ValueError,
            "combination_type 'linear' is not supported: use 'cat', which is exact",
            lambda at: at.model.add_weighted_adapter(["default", "b"], [1, 1], "sum", "linear"),
        ),
        Case(
            "fewer weights than adapters",
            ValueError,
            "expected a finite weight for each adapter, got [1] for ['default', 'b']",
            lambda at: at.model.add_weighted_adapter(["default", "b"], [1], "sum"),
        ),
        Case(
            "a weight that is not finite",
            ValueError,
            "expected a finite weight for each adapter",
            lambda at: at.model.add_weighted_adapter(["b"], [float("inf")], "sum"),
        ),
        Case(
            "a sum with an unknown adapter",
            ValueError,
            "no adapter called 'x'",
            lambda at: at.model.add_weighted_adapter(["b", "x"], [1, 1], "sum"),
        ),
        Case(
            "one adapter for two rows",
            ValueError,
            "adapter_names names 1 adapters for a batch of 2 rows",
            lambda at: at.model(IDS, adapter_names=["b"]),
        ),
        Case(
            "an unknown adapter for a row",
            ValueError,
            "no adapter called 'x'",
            lambda at: at.model(IDS, adapter_names=["b", "x"]),
        ),
        Case(
            "rows with adapters of their own, in training",
            ValueError,
            "adapter_names is for inference: call model.eval() first",
            training_rows,
        ),
        Case(
            "rows with adapters of their own, while merged",
            ValueError,
            "adapter_names cannot choose among merged adapters: call unmerge_adapter first",
            merged_rows,
        ),
        Case(
            "merging into a quantised layer",
            TypeError,
            "cannot merge into a torch.int8 weight: dequantise the base layer first",
            quantised,
        ),
        Case(
            "merging an adapter with NaN in it",
            ValueError,
            "h.0.attn.c_attn: merging ['default'] gives NaN or infinity in torch.float32: nothing was merged",
            lambda at: with_nan(at).merge_adapter(),
        ),
        Case(
            "merging while the adapters are switched off",
            ValueError,
            "the adapters are disabled here: call merge_adapter outside of disable_adapter",
            merged_while_off,
        ),
        Case(
            "merged weights for a model that is not merged",
            ValueError,
            "these weights have an adapter merged in, which would count twice or be lost: call unmerge_adapter",
            merged_weights,
        ),
        Case(
            "training once the adapters are taken out",
            ValueError,
            "no LoRA layer is left in this model",
            spent(lambda model, at: model.enable_lora_training()),
        ),
        Case(
            "saving once the adapters are taken out",
            ValueError,
            "no adapter called 'default'; there are []",
            spent(lambda model, at: model.save_pretrained(at.tmp, "default")),
        ),
        Case(
            "switching to nothing by mistake",
            ValueError,
            "no adapter called None; there are ['default', 'b', 'c']",
            lambda at: at.model.set_adapter(None),
        ),
        Case(
            "unmerging while the adapters are switched off",
            ValueError,
            "the adapters are disabled here: call unmerge_adapter outside of disable_adapter",
            unmerged_while_off,
        ),
        Case(
            "an argument of PEFT's that asks for something else",
            TypeError,
            "adapter_names=['b'] is PEFT's and not supported here: what is merged are the active adapters: call",
            lambda at: at.model.merge_adapter(adapter_names=["b"]),
        ),
        Case(
            "pickled weights",
            TypeError,
            "safe_serialization=False is PEFT's and not supported here: weights are always saved as safetensors",
            lambda at: at.model.save_pretrained(at.tmp, safe_serialization=False),
        ),
        Case(
            "an argument with a slip in its name",
            TypeError,
            "there is no argument 'torch_devise'. Did you mean 'torch_device'?",
            lambda at: PeftModel.from_pretrained(at.base, at.folder, torch_devise="cpu"),
        ),
        Case(
            "something that neither the wrapper nor the model has",
            AttributeError,
            "neither lora_lib's PeftModel nor the GPT2Model in it has 'peft_type'",
            lambda at: at.model.peft_type,
        ),
    ],
    "Adapter files": [
        Case(
            "no such folder",
            AdapterError,
            "has no adapter_config.json: expected a folder written by save_pretrained",
            lambda at: PeftModel.from_pretrained(at.base, at.tmp / "nowhere"),
        ),
        Case(
            "a folder with pickled weights",
            AdapterError,
            "has no adapter_model.safetensors…(pickled .bin weights are never opened)",
            lambda at: ((at.folder / WEIGHTS_FILE).rename(at.folder / "adapter_model.bin"), open_it(at)),
        ),
        Case(
            "a pickle in disguise",
            AdapterError,
            "adapter_model.safetensors is not a whole safetensors file",
            with_bytes(WEIGHTS_FILE, lambda data: pickle.dumps({"a": 1})),
        ),
        Case(
            "an empty file", AdapterError, "is not a whole safetensors file", with_bytes(WEIGHTS_FILE, lambda data: b"")
        ),
        Case(
            "a file that was cut short",
            AdapterError,
            "is not a whole safetensors file",
            with_bytes(WEIGHTS_FILE, lambda data: data[: len(data) // 2]),
        ),
        Case(
            "one bit that has flipped",
            AdapterError,
            "is damaged: its tensors are not those that were saved (their SHA-256 differs)",
            with_bytes(WEIGHTS_FILE, flip),
        ),
        Case(
            "a config that is no JSON",
            AdapterError,
            "adapter_config.json is not valid JSON",
            with_bytes(CONFIG_FILE, lambda data: data[:-9]),
        ),
        Case(
            "a config nested without end",
            AdapterError,
            "adapter_config.json is not valid JSON",
            with_bytes(CONFIG_FILE, lambda data: b"[" * 200_000),
        ),
        Case(
            "another method of PEFT",
            AdapterError,
            'expected an object with "peft_type": "LORA"',
            with_config(peft_type="IA3"),
        ),
        Case(
            "a config without its rank",
            AdapterError,
            "r is missing (PEFT would silently use its default)",
            with_config(r=None),
        ),
        Case("a config without its alpha", AdapterError, "lora_alpha is missing", with_config(lora_alpha=None)),
        Case(
            "a rank far larger than the tensors",
            AdapterError,
            "the config's rank for h.0.attn.c_attn is 20000000, but its A is (24, 4)",
            foreign_rank,
        ),
        Case("a config without targets", AdapterError, "target_modules is missing", with_config(target_modules=None)),
        Case(
            "a field with a value of another type",
            AdapterError,
            "use_rslora must be True or False, got 'yes'",
            with_config(use_rslora="yes"),
        ),
        Case(
            "an alpha of infinity",
            AdapterError,
            "lora_alpha must be a number above 0, at most 1e30, got inf",
            with_config(lora_alpha=float("inf")),
        ),
        Case(
            "an option that this library does not have",
            AdapterError,
            "lora_bias = True is not supported here: a bias in B is another formula",
            with_config(lora_bias=True),
        ),
        Case(
            "an option that nobody has yet",
            AdapterError,
            "use_new_thing = 3 is not supported here",
            with_config(use_new_thing=3),
        ),
        Case(
            "another rank than the tensors have",
            AdapterError,
            'are not from one save (or one was edited): the tensors were saved with {"r": 4,…the config says {"r": 3,',
            with_config(r=3),
        ),
        Case(
            "a tensor without its twin",
            AdapterError,
            "layer transformer.h.0.attn.c_attn has no lora_B.weight",
            with_tensors(lambda t: t.pop(TWIN)),
        ),
        Case(
            "a layer without its tensors",
            AdapterError,
            "the file has no weights for 1 of the model's layers ['transformer.h.0.attn.c_attn']",
            with_tensors(lambda t: (t.pop(KEY), t.pop(TWIN))),
        ),
        Case(
            "tensors for a layer that is not there",
            AdapterError,
            "weights for 1 that the model lacks ['transformer.h.7.attn.c_attn']",
            with_tensors(lambda t: [t.update({k.replace("h.0", "h.7"): t.pop(k)}) for k in (KEY, TWIN)]),
        ),
        Case(
            "a tensor that is no adapter's",
            AdapterError,
            "tensor 'transformer.wte.weight' is not a LoRA weight",
            with_tensors(lambda t: t.update({"transformer.wte.weight": torch.zeros(2, 2)})),
        ),
        Case(
            "a name that tries to leave the folder",
            AdapterError,
            "tensor '../../etc/passwd' is not a LoRA weight",
            with_tensors(lambda t: t.update({"../../etc/passwd": torch.zeros(2, 2)})),
        ),
        Case(
            "a tensor of another shape",
            AdapterError,
            "A of transformer.h.0.attn.c_attn is (4, 24), this model and the config's rank need (24, 4)",
            with_tensors(lambda t: t.update({KEY: t[KEY].T.contiguous()})),
        ),
        Case(
            "a tensor with NaN in it",
            AdapterError,
            "lora_A.weight must hold finite floats, is (4, 24) float32 with NaN or infinity in it",
            with_tensors(lambda t: t[KEY].fill_(float("nan"))),
        ),
        Case(
            "a tensor with a number beyond float32",
            AdapterError,
            "lora_A.weight must hold finite floats, is (4, 24) float64 with numbers too large for float32 in it",
            with_tensors(lambda t: t.update({KEY: t[KEY].double() * 1e300})),
        ),
        Case(
            "a config of another save than the tensors",
            AdapterError,
            'are not from one save (or one was edited): the tensors were saved with {"r": 4, "lora_alpha": 16,',
            with_config(lora_alpha=250),
        ),
        Case(
            "a model on the meta device",
            AdapterError,
            "the model is on the meta device, where tensors have no numbers: load its weights first",
            lambda at: PeftModel.from_pretrained(small().to("meta"), at.folder),
        ),
        Case(
            "a tensor of whole numbers",
            AdapterError,
            "lora_A.weight must hold finite floats, is (4, 24) int64",
            with_tensors(lambda t: t.update({KEY: t[KEY].long()})),
        ),
        Case(
            "a deeper base",
            AdapterError,
            "does not fit this model: the file has no weights for 1 of the model's…was it made for another base?",
            onto(n_layer=3),
        ),
        Case(
            "a shallower base",
            AdapterError,
            "weights for 1 that the model lacks…was it made for another base?",
            onto(n_layer=1),
        ),
        Case(
            "a wider base",
            AdapterError,
            "A of transformer.h.0.attn.c_attn is (24, 4), this model and the config's rank need (48, 4)",
            onto(n_embd=48),
        ),
        Case(
            "a base of the same shape with other weights",
            AdapterError,
            "the base has other weights than the one it was made for (check_base=False opens it anyway)",
            lambda at: PeftModel.from_pretrained(small(seed=1), at.folder),
        ),
        Case(
            "saving an adapter with NaN in it",
            ValueError,
            "B of transformer.h.0.attn.c_attn has NaN or infinity in it: nothing was saved",
            save_nan,
        ),
        Case(
            "saving where a file is",
            OSError,
            "adapter_model.safetensors and adapter_config.json could not be saved to",
            lambda at: at.model.save_pretrained(at.folder / CONFIG_FILE),
        ),
        Case(
            "a full disk",
            OSError,
            "could not be saved to…No space left on device; an older one is unchanged",
            saving(fails(errno.ENOSPC)),
        ),
        Case(
            "a read-only disk",
            OSError,
            "Read-only file system; an older one is unchanged",
            saving(fails(errno.EROFS)),
        ),
        Case("a save that is interrupted", KeyboardInterrupt, "while saving", saving(is_interrupted)),
        Case(
            "an alpha of 0",
            AdapterError,
            "lora_alpha must be a number above 0, at most 1e30, got 0",
            with_config(lora_alpha=0),
        ),
        Case(
            "an embedding beside the adapter, as PEFT saves it after a resize",
            AdapterError,
            "tensor 'base_model.model.transformer.wte.weight' is not a LoRA weight (a whole embedding or head: save",
            with_tensors(lambda t: t.update({"base_model.model.transformer.wte.weight": torch.zeros(2, 2)})),
        ),
    ],
    "Models and text": [
        Case(
            "a model's name mistyped",
            FileNotFoundError,
            "no model 'gtp2': expected one of gpt2-mini, gpt2,",
            lambda at: load_pretrained("gtp2"),
        ),
        Case(
            "a folder that holds no model",
            FileNotFoundError,
            "has no config.json: expected a folder in Hugging Face's format",
            lambda at: load_pretrained(at.tmp),
        ),
        Case(
            "another architecture",
            ValueError,
            "expected model_type 'gpt2', found 'llama'",
            lambda at: mini(at, model_type="llama"),
        ),
        Case(
            "an option that would change the logits",
            ValueError,
            "activation_function is 'relu'; this GPT-2 supports 'gelu_new'",
            lambda at: mini(at, activation_function="relu"),
        ),
        Case(
            "a config of other sizes than the weights",
            ValueError,
            "weights and config.json differ; missing ['h.6.attn.c_attn.bias'",
            lambda at: mini(at, n_layer=7),
        ),
        Case(
            "weights that are no safetensors file",
            ValueError,
            "model.safetensors is not a whole safetensors file",
            lambda at: mini(at, weights=b"half a file"),
        ),
        Case(
            "a model without its tokenizer",
            FileNotFoundError,
            "has no tokenizer: expected bpe.tiktoken, vocab.json or tokenizer.json",
            no_tokenizer,
        ),
        Case(
            "a tokenizer's file without a token",
            ValueError,
            "bpe.tiktoken: ranks must be 0, 1, 2, … without gaps, got 0 of them",
            empty_tokenizer,
        ),
        Case(
            "a token id outside the vocabulary",
            IndexError,
            "token ids must be from 0 to 96 in this model, got 1 to 97",
            lambda at: at.model(torch.tensor([[1, 97]])),
        ),
        Case(
            "a negative token id",
            IndexError,
            "token ids must be from 0 to 96 in this model, got -100 to 1",
            lambda at: at.model(torch.tensor([[1, -100]])),
        ),
        Case(
            "a text over the context length",
            ValueError,
            "33 tokens do not fit this model's context of 32",
            lambda at: at.model(torch.zeros(1, 33, dtype=torch.long)),
        ),
        Case(
            "more new tokens than the context has room for",
            ValueError,
            "a prompt of 6 tokens and 27 new ones do not fit this model's context of 32",
            lambda at: at.model.generate(IDS, 27),
        ),
        Case(
            "an empty prompt",
            ValueError,
            "every row needs a prompt of 1 to 0 tokens",
            lambda at: at.model.generate(IDS[:, :0], 5),
        ),
        Case(
            "an empty name of a model",
            FileNotFoundError,
            "no model '': expected one of",
            lambda at: load_pretrained(""),
        ),
    ],
    "Data and training": [
        Case(
            "an empty data set",
            ValueError,
            "the training set is empty: fit needs at least one encoded example",
            lambda at: fit(at.model.enable_lora_training(), [], steps=1),
        ),
        Case("nothing to evaluate on", ValueError, "no examples to evaluate on", lambda at: evaluate(at.model, [])),
        Case(
            "an example without an answer",
            ValueError,
            "example 1 has no completion: there is nothing to learn from it",
            lambda at: encode_examples([("a", "b"), ("a", "")], Words(), 8),
        ),
        Case(
            "an example over the context length",
            ValueError,
            "example 0 is too long: a prompt of 9 and a completion of 1 tokens do not fit max_length 8",
            lambda at: encode_examples([("a " * 9, "b")], Words(), 8),
        ),
        Case(
            "training with everything frozen",
            ValueError,
            "no parameter requires gradients: call model.enable_lora_training() first",
            lambda at: fit(at.frozen(), [(IDS[0], IDS[0])], steps=1),
        ),
        Case(
            "a loss that becomes NaN; the weights stay those of the step before",
            FloatingPointError,
            "the loss is nan at step 2: the run diverged; try a smaller learning_rate than 0.001",
            nan_loss,
        ),
        Case(
            "weights that are NaN before the training",
            FloatingPointError,
            "the loss is nan at step 1: no weight has been changed yet, so look for NaN or huge numbers in the model's",
            lambda at: nan_loss(at, at_step=1),
        ),
        *(
            Case(
                what,
                ValueError,
                f"{name} must be {expected}…, got {value!r}",
                lambda at, name=name, value=value: fit(trainable(at), DATA, **{"steps": 1, name: value}),
            )
            for what, name, value, expected in (
                ("no steps to take", "steps", 0, "a whole number from 1"),
                ("a learning rate in quotes", "learning_rate", "1e-3", "a number above 0, at most 1e30"),
                ("a learning rate that is not finite", "learning_rate", float("inf"), "a number above 0, at most 1e30"),
                ("a warm-up longer than the run", "warmup", 10, "a number from 0 to 1"),
                ("a negative weight decay", "weight_decay", -0.1, "a number from 0, and finite"),
                ("gradients clipped to nothing", "clip", 0, "a number above 0 (math.inf does not clip)"),
                ("no batches in a step", "accumulate", 0, "a whole number from 1"),
            )
        ),
        Case(
            "an example whose targets are all ignored",
            ValueError,
            "training example 1 has nothing to learn: all of its targets are -100",
            lambda at: fit(trainable(at), [*DATA, (IDS[0], torch.full_like(IDS[0], -100))], steps=1),
        ),
        Case(
            "examples that are not encoded",
            ValueError,
            "training example 0 is not a pair of token ids and targets, two tensors of one length: encode_examples",
            lambda at: fit(trainable(at), [("a prompt", "and its answer")], steps=1),
        ),
        Case(
            "training while the adapter is merged",
            ValueError,
            "the adapters are merged into the weights: call model.enable_lora_training(), which unmerges",
            merged_training,
        ),
        Case(
            "bfloat16 autocast on a float64 model",
            ValueError,
            "bf16=True does not work on float64 weights: pass bf16=False, or call model.float() first",
            lambda at: fit(nn.Linear(2, 2).double(), DATA, steps=1, bf16=True),
        ),
        Case(
            "a model that gives the last token's logits alone",
            ValueError,
            "expected logits of (1, 6, V) from the model, one row for each token…got a tensor of (1, 1, 97): wrap the",
            lambda at: fit(LastLogits(at.base), DATA, steps=1, progress=False),
        ),
        Case(
            "a checkpoint where nothing can be written; noticed before the training",
            OSError,
            "cannot be written to: …is not a folder; choose another place",
            lambda at: fit(trainable(at), DATA, steps=1, checkpoint=at.folder / CONFIG_FILE / "run.safetensors"),
        ),
        *(
            Case(what, ValueError, f"file.{ending}, line {line}…{message}", reading(f"file.{ending}", content))
            for what, ending, line, message, content in (
                (
                    "a cell for a missing value",
                    "csv",
                    2,
                    "'completion' is 'nan', which is how programs write a missing",
                    "prompt,completion\na,nan\n",
                ),
                (
                    "a row with too many fields",
                    "csv",
                    2,
                    "expected 2 fields, as in the header, found 3",
                    "prompt,completion\na,b,c\n",
                ),
                (
                    "an answer that is no text",
                    "jsonl",
                    1,
                    "'completion' must be a string, found null",
                    '{"prompt": "a", "completion": null}',
                ),
                ("a chat's turn that is not to be learned", "jsonl", 1, "message 2: its weight is 0", chat(weight=0)),
                (
                    "a question beside a chat, which would not be read",
                    "jsonl",
                    1,
                    "'prompt' stands beside 'messages', and only the messages would be learned",
                    '{"messages": [], "prompt": "a"}',
                ),
            )
        ),
        Case("a folder where a file is meant", OSError, "is a folder: name a file in it", lambda at: read_text(at.tmp)),
        Case(
            "an example list that can be read only once",
            TypeError,
            "expected a list of encoded examples as the training set, got a generator: list(…) makes one",
            lambda at: fit(trainable(at), (pair for pair in DATA), steps=1),
        ),
        Case(
            "a validation set without examples",
            ValueError,
            "the validation set is empty: fit needs at least one encoded example",
            lambda at: fit(trainable(at), DATA, steps=1, validation=[]),
        ),
        Case(
            "a chat whose messages have no role",
            ValueError,
            "a message of a chat is {'role': 'user', 'content': '…'} or the like, got {'content': 'a'}",
            lambda at: encode_chat([{"content": "a"}], None),
        ),
        Case(
            "padding where a token sees those after it",
            ValueError,
            "the attention of this SeesAhead is not causal: a token sees those after it, so the padding",
            lambda at: evaluate(SeesAhead(), [*DATA, (IDS[0][:3], IDS[0][:3])]),
        ),
        Case(
            "another validation set when a run goes on",
            ValueError,
            "belongs to another run: its validation data is",
            another_validation,
        ),
        Case(
            "a field with the name of a score",
            ValueError,
            "a field of the wanted answers is called 'exact', as one score is: rename the field",
            lambda at: judge_answers(['{"exact": 1}'], ['{"exact": 1}']),
        ),
        Case(
            "a test file that is trained on",
            ValueError,
            '1 of 1 items in "test" are in "data" too: take them out of one',
            test_on_training_data,
        ),
        Case(
            "a text where a list of texts is meant",
            ValueError,
            "expected a list of documents or records, got one text; read_text makes a list of it",
            lambda at: split("Once upon a time"),
        ),
        *(
            Case(what, ValueError, f"run.json: {message}", config(**values))
            for what, message, values in (
                (
                    "a config without the steps",
                    "fit needs steps, the number of steps, or passes over the data",
                    {"fit": {}},
                ),
                (
                    "a config with a number in quotes",
                    "fit.learning_rate must be a number above 0, at most 1e30, got '1e-3'",
                    {"fit": {"steps": 1, "learning_rate": "1e-3"}},
                ),
                (
                    "a config with a switch in quotes",
                    "gradient_checkpointing must be True or False, got 'no'",
                    {"gradient_checkpointing": "no"},
                ),
                (
                    "a config with nothing where settings are meant",
                    "lora must be an object, {…}, got None",
                    {"lora": None},
                ),
            )
        ),
        Case(
            "a config's output that cannot be written; noticed before the training",
            OSError,
            "cannot be written to: …is not a folder; choose another place",
            lambda at: train(RunConfig("restaurants", str(at.folder / CONFIG_FILE / "out"))),
        ),
        Case(
            "a download that is interrupted, or no network",
            ConnectionError,
            "could not download sms_spam/SMSSpamCollection from",
            offline,
        ),
        Case(
            "a download that was tampered with",
            ValueError,
            "is not the published file: expected SHA-256 7d039a24",
            local_data(b"ham\tsend money\n"),
        ),
        Case(
            "a data folder without the file",
            FileNotFoundError,
            "LORA_DATA_DIR is set, but there is no",
            local_data(None),
        ),
        Case("a GPU that is not there (PyTorch's own error)", (AssertionError, RuntimeError), "…", without_gpu),
    ],
}
