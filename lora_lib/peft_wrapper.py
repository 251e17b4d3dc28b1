"""Put LoRA layers into any model, and manage them: the counterpart of Hugging Face PEFT's `PeftModel`.

Where a method exists in PEFT it has PEFT's name and meaning.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lora_lib.adapter_files import AdapterError, Layers, LoRAConfig, read_adapter, write_adapter
from lora_lib.gpt2 import GPT2Model, hf_name
from lora_lib.lora_linear import LoRA, LoRALinear, linear_shape

DEFAULT = "default"


def get_peft_model(
    model: nn.Module,
    target_modules: Sequence[str] | str = "all-linear",
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    *,
    use_rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    adapter_name: str = DEFAULT,
) -> PeftModel:
    """Wrap the chosen linear layers of `model` (in place) with LoRA; freeze everything else.

    `target_modules` is a list of layer names (`"c_attn"`, or dotted, `"h.0.attn.c_attn"`), one
    string that is a regular expression for whole dotted names, or `"all-linear"`: every linear layer
    but the head that the model's `get_output_embeddings` names, if it has one. The output does not
    change: B starts at zero.

    Raises ValueError when a target matches nothing, or matches something that is not a linear layer.
    """
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoRAConfig(
        targets, lora_rank, lora_alpha, lora_dropout, use_rslora, dict(rank_pattern or {}), dict(alpha_pattern or {})
    )
    wrapped = PeftModel(model, config, adapter_name)
    wrapped._freeze_all_but_active()
    return wrapped


class PeftModel(nn.Module):
    """A model with LoRA layers in it, and named adapters that can be switched, saved and merged.

    Made by `get_peft_model` or `PeftModel.from_pretrained`. Calls, and attributes that it does not
    have itself (`generate`, `config`, …), go to the model inside, `base_model`.
    """

    def __init__(self, model: nn.Module, config: LoRAConfig, adapter_name: str = DEFAULT) -> None:
        super().__init__()
        if isinstance(model, PeftModel) or any(isinstance(m, LoRALinear) for m in model.modules()):
            raise ValueError("this model already has LoRA layers: add_adapter gives it another adapter")
        self.base_model = model
        self.peft_config: dict[str, LoRAConfig] = {}
        self.add_adapter(adapter_name, config)
        self.set_adapter(adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not set yet: asking it would never end
                raise
            return getattr(self.base_model, name)

    # --- training ---------------------------------------------------------------------------------

    def enable_lora_training(self) -> PeftModel:
        """Training mode with the base frozen and the active adapters' A and B trainable; unmerges first."""
        if not self.lora_layers():
            raise ValueError("no LoRA layer is left in this model (merge_and_unload takes them out): wrap it anew")
        self.unmerge_adapter()
        self._freeze_all_but_active()
        return self.train()

    def _freeze_all_but_active(self) -> None:
        self.requires_grad_(False)
        for layer in self.lora_layers().values():
            for name in layer.active:
                layer.adapters[name].requires_grad_(True)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters, counted in numbers; a tied weight counts once."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print both counts and their share, in the words of PEFT."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    # --- named adapters ---------------------------------------------------------------------------

    def lora_layers(self) -> dict[str, LoRALinear]:
        """The LoRA layers by their dotted name in the model."""
        return {name: m for name, m in self.base_model.named_modules() if isinstance(m, LoRALinear)}

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters in use; empty where all are disabled."""
        return list(dict.fromkeys(name for layer in self.lora_layers().values() for name in layer.active))

    def add_adapter(self, adapter_name: str, config: LoRAConfig) -> None:
        """Add a new adapter, random A and zero B; `set_adapter` makes it the one in use."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter_name):
            raise ValueError(f"an adapter's name is letters, digits, '_' and '-', got {adapter_name!r}")
        if adapter_name in self.peft_config:
            raise ValueError(f"there is already an adapter called {adapter_name!r}; delete_adapter removes it")
        # All bypasses are made before the first is put in: a bad rank leaves the model as it was.
        for name, adapter in _new_adapters(self.base_model, config).items():
            layer = self.base_model.get_submodule(name)
            if not isinstance(layer, LoRALinear):
                layer = LoRALinear(cast(nn.Linear, layer))
                _replace(self.base_model, layer.base, layer)
            layer.adapters[adapter_name] = adapter.requires_grad_(False)
        self.peft_config[adapter_name] = config

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Use this adapter (or the sum of these), and no other. Copies no weights.

        If an adapter was being trained, the new one now is instead.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        for name in names:
            self._check_known(name)
        training = any(p.requires_grad for p in self.parameters())
        for layer in self.lora_layers().values():
            layer.activate([name for name in names if name in layer.adapters])
        if training:
            self._freeze_all_but_active()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was in use, the model runs on the others that were, or on the base alone."""
        self._check_known(adapter_name)
        for layer in self.lora_layers().values():
            layer.activate([name for name in layer.active if name != adapter_name])
            if adapter_name in layer.adapters:
                del layer.adapters[adapter_name]
        del self.peft_config[adapter_name]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context the model is the base alone; afterwards everything is as it was, merged or not."""
        layers = self.lora_layers().values()
        before = [layer.active for layer in layers]
        for layer in layers:
            layer.activate([])
        try:
            yield
        finally:
            for layer, active in zip(layers, before, strict=True):
                layer.activate(active)

    def _check_known(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise ValueError(f"no adapter called {adapter_name!r}; there are {list(self.peft_config)}")

    # --- merging ----------------------------------------------------------------------------------

    def merge_adapter(self) -> None:
        """Fold the active adapters into the weights: inference at the base's speed. `unmerge_adapter` is exact."""
        for layer in self.lora_layers().values():
            layer.merge()

    def unmerge_adapter(self) -> None:
        """Take the adapters out of the weights again, bit for bit."""
        for layer in self.lora_layers().values():
            layer.unmerge()

    def merge_and_unload(self) -> nn.Module:
        """The plain model, frozen, with the active adapters folded in; this wrapper is spent."""
        self.merge_adapter()
        return self._take_out()

    def unload(self) -> nn.Module:
        """The plain base model, bit for bit as before `get_peft_model`, but frozen; this wrapper is spent."""
        self.unmerge_adapter()
        return self._take_out()

    def _take_out(self) -> nn.Module:
        for layer in self.lora_layers().values():
            _replace(self.base_model, layer, layer.base)
        return self.base_model

    # --- files ------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, adapter_name: str | None = None) -> None:
        """Write an adapter (by default the active one) as a folder that PEFT opens too.

        Layers of our GPT-2 get the names they have in Hugging Face's, so that the adapter fits both.
        """
        if adapter_name is None:
            if len(self.active_adapters) != 1:
                raise ValueError(f"active are {self.active_adapters}: say which of {list(self.peft_config)} to save")
            adapter_name = self.active_adapters[0]
        self._check_known(adapter_name)
        config = self.peft_config[adapter_name]
        own = {name: layer for name, layer in self.lora_layers().items() if adapter_name in layer.adapters}
        layers: Layers = {}
        transposed = isinstance(self.base_model, GPT2Model)
        for name, layer in own.items():
            adapter = layer.adapters[adapter_name]
            layers[_file_name(self.base_model, name)] = adapter.A, adapter.B
            transposed = transposed or not isinstance(layer.base, nn.Linear)
        saved = LoRAConfig(**{**vars(config), "target_modules": _saved_targets(self.base_model, config, list(own))})
        write_adapter(folder, saved, layers, fan_in_fan_out=transposed)

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path, adapter_name: str = DEFAULT) -> PeftModel:
        """Put a saved adapter into `model`, ready for inference; `enable_lora_training` trains it on.

        Raises AdapterError if the folder cannot be read or does not fit; `model` is then unchanged.
        """
        config, layers = read_adapter(folder)
        _check_fit(model, config, layers, Path(folder))
        wrapped = cls(model, config, adapter_name)
        wrapped._fill(adapter_name, layers)
        return wrapped.requires_grad_(False).eval()

    def load_adapter(self, folder: str | Path, adapter_name: str) -> None:
        """Add a saved adapter under a name; `set_adapter` makes it the one in use."""
        config, layers = read_adapter(folder)
        _check_fit(self.base_model, config, layers, Path(folder))
        self.add_adapter(adapter_name, config)
        self._fill(adapter_name, layers)

    @torch.no_grad()
    def _fill(self, adapter_name: str, layers: Layers) -> None:
        for name, layer in self.lora_layers().items():
            if adapter_name in layer.adapters:
                adapter = layer.adapters[adapter_name]
                a, b = layers[_file_name(self.base_model, name)]
                adapter.A.copy_(a)
                adapter.B.copy_(b)


# --- finding layers -------------------------------------------------------------------------------


def find_targets(model: nn.Module, target_modules: Sequence[str] | str) -> list[str]:
    """The dotted names of the layers that `target_modules` chooses, in the model's order.

    Layers of our GPT-2 are found under their own name and under Hugging Face's (`out_head`, `lm_head`).
    Raises ValueError as `get_peft_model` does.
    """
    modules = _modules(model)
    linear = [name for name, module in modules.items() if _is_linear(module)]
    if not linear:
        raise ValueError(f"there is no linear layer in this {type(model).__name__} (LoRALinear wraps a single layer)")
    if target_modules == "all-linear":
        head_of: Any = getattr(model, "get_output_embeddings", lambda: None)
        head = head_of()
        found = [name for name in linear if modules[name] is not head]
    elif isinstance(target_modules, str):
        found = [name for name in linear if any(_regex(target_modules, n) for n in _names(model, name))]
        if not found:
            raise ValueError(
                f"the regular expression {target_modules!r} matches no whole name of a layer; {_choices(linear)}"
                f" (for layers by the end of their name pass a list: [{target_modules!r}])"
            )
    elif not target_modules:
        raise ValueError(f"target_modules is empty; {_choices(linear)}")
    else:
        found = [name for target in target_modules for name in _find_target(model, modules, linear, target)]
    chosen = {id(modules[name]): name for name in reversed(modules) if name in found}  # a shared layer counts once
    return [name for name in modules if name in chosen.values()]


def _find_target(model: nn.Module, modules: dict[str, nn.Module], linear: Sequence[str], target: str) -> list[str]:
    hits = [n for n in modules if any(("." + k).endswith("." + target) for k in _names(model, n))]
    if not hits:
        near = difflib.get_close_matches(target.rsplit(".", 1)[-1], _last_parts(linear), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
        raise ValueError(f"target {target!r} matches no layer{hint} {_choices(linear)}")
    for name in hits:
        if name not in linear:
            kind = type(modules[name]).__name__
            raise ValueError(
                f"target {target!r} finds {name} ({kind}), but LoRA wraps linear layers; {_choices(linear)}"
            )
    return hits


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by dotted name, but for what is inside a LoRA layer."""
    named = dict(model.named_modules(remove_duplicate=False))
    wrapped = tuple(name + "." for name, module in named.items() if isinstance(module, LoRALinear))
    return {name: module for name, module in named.items() if name and not name.startswith(wrapped)}


def _is_linear(module: nn.Module) -> bool:
    try:
        linear_shape(module.base if isinstance(module, LoRALinear) else module)
    except TypeError:
        return False
    return True


def _file_name(model: nn.Module, name: str) -> str:
    """A layer's name in an adapter file: Hugging Face's for our GPT-2, else its own."""
    return hf_name(name) if isinstance(model, GPT2Model) else name


def _names(model: nn.Module, name: str) -> set[str]:
    """The names that a layer answers to."""
    return {name, _file_name(model, name)}


def _regex(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def _choices(linear: Sequence[str]) -> str:
    return f"the linear layers of this model are called {', '.join(_last_parts(linear))}"


def _last_parts(names: Sequence[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` where `old` stands, in every place where a model that shares layers has it."""
    for parent in list(model.modules()):
        for child, module in parent._modules.items():
            if module is old:
                setattr(parent, child, new)


# --- one adapter's layers -------------------------------------------------------------------------


def _new_adapters(model: nn.Module, config: LoRAConfig) -> dict[str, LoRA]:
    """A fresh bypass for each layer that the config chooses, by the layer's name; `model` is not touched."""
    names = find_targets(model, config.target_modules)
    for pattern in {**config.rank_pattern, **config.alpha_pattern}:
        if not any(_fits(pattern, model, name) for name in names):
            raise ValueError(f"rank_pattern or alpha_pattern names {pattern!r}, which is none of the targets")
    adapters = {}
    for name in names:
        rank = next((v for p, v in config.rank_pattern.items() if _fits(p, model, name)), config.r)
        alpha = next((v for p, v in config.alpha_pattern.items() if _fits(p, model, name)), config.lora_alpha)
        layer = model.get_submodule(name)
        base = layer.base if isinstance(layer, LoRALinear) else cast(nn.Linear, layer)
        try:
            adapters[name] = LoRA.around(base, rank, alpha, config.lora_dropout, use_rslora=config.use_rslora)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return adapters


def _fits(pattern: str, model: nn.Module, name: str) -> bool:
    """Whether a key of `rank_pattern` is a layer's name, the end of it, or a regular expression for either."""
    return any(_regex(rf"(.*\.)?({pattern})", n) for n in _names(model, name))


def _check_fit(model: nn.Module, config: LoRAConfig, layers: Layers, folder: Path) -> None:
    """Raise AdapterError unless the file's layers are those that its config chooses in this model, shape by shape."""
    try:
        wanted = {_file_name(model, name): a for name, a in _new_adapters(model, config).items()}
    except ValueError as error:
        raise AdapterError(f"{folder} does not fit this model: {error}") from error
    missing, extra = sorted(wanted.keys() - layers.keys()), sorted(layers.keys() - wanted.keys())
    if missing or extra:
        raise AdapterError(
            f"{folder} does not fit this model: it has no weights for {len(missing)} of its layers {missing[:3]}, "
            f"and weights for {len(extra)} that it does not have {extra[:3]}; was it made for another base?"
        )
    for name, adapter in wanted.items():
        for letter, have, want in zip("AB", layers[name], (adapter.A, adapter.B), strict=True):
            if have.shape != want.shape:
                raise AdapterError(
                    f"{folder} does not fit this model: {letter} of {name} is {tuple(have.shape)}, "
                    f"this model and the config's rank need {tuple(want.shape)}"
                )


def _saved_targets(model: nn.Module, config: LoRAConfig, names: Sequence[str]) -> list[str]:
    """Targets as PEFT will understand them: a pattern or "all-linear" is written out, layer by layer."""
    if isinstance(config.target_modules, str):
        return [_file_name(model, name) for name in names]
    return [hf_name(t) if t == "out_head" and isinstance(model, GPT2Model) else t for t in config.target_modules]
