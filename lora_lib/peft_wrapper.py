"""Put LoRA layers into any model, and manage them: the counterpart of Hugging Face PEFT's `PeftModel`.

Where a method exists in PEFT it has PEFT's name and meaning.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.files import write_adapter
from lora_lib.adapters.modules_to_save import TrainedCopy
from lora_lib.adapters.parts import base_sample, copies_to_save, load_adapters, new_adapters, weighted_sum
from lora_lib.adapters.targets import (
    config_copies,
    exact_targets,
    file_name,
    pattern_of,
    plain_model,
    rank_and_alpha,
    replace_module,
    saved_targets,
)
from lora_lib.adapters.variants import PiSSA
from lora_lib.gpt2.model import GPT2Model
from lora_lib.lora_linear import BASE, LoRA, LoRALinear, refuse_merged

DEFAULT = "default"


def get_peft_model(
    model: nn.Module,
    target_modules: LoRAConfig | Sequence[str] | str = "all-linear",
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    *,
    adapter_name: str = DEFAULT,
    **settings: Any,
) -> PeftModel:
    """Wrap the chosen linear layers of `model` (in place) with LoRA; freeze everything else.

    `target_modules` is a list of layer names (`"c_attn"`, or dotted, `"h.0.attn.c_attn"`), one
    string that is a regular expression for whole dotted names, or `"all-linear"`: every linear layer
    but the head that the model's `get_output_embeddings` names, if it has one. The output does not
    change: B starts at zero. `settings` are further fields of `LoRAConfig`, by name. All of them may also come as
    one `LoRAConfig`, in the place of `target_modules`.

    Raises ValueError when a target matches nothing, or matches something that is not a linear layer, and TypeError
    for a setting that `LoRAConfig` does not have, or one given beside a `LoRAConfig`.
    """
    if isinstance(target_modules, LoRAConfig):
        if settings or (lora_rank, lora_alpha, lora_dropout) != (8, 16, 0.0):
            raise TypeError("the settings come in the LoRAConfig or as keywords, not both")
        config = target_modules
    elif type(target_modules).__name__ == "LoraConfig":
        raise TypeError("this is PEFT's LoraConfig: give lora_lib's LoRAConfig, which takes the same names")
    else:
        targets: Any = list(target_modules) if isinstance(target_modules, (tuple, set)) else target_modules
        config = LoRAConfig(targets, lora_rank, lora_alpha, lora_dropout, **settings)
    wrapped = PeftModel(model, config, adapter_name)
    wrapped._freeze_all_but_active()
    return wrapped


class PeftModel(nn.Module):
    """A model with LoRA layers in it, and named adapters that can be switched, saved and merged.

    Made by `get_peft_model` or `PeftModel.from_pretrained`. Calls, and attributes that it does not
    have itself (`config`, …), go to the model inside, `base_model`. To `inspect`, its `forward` has that one's
    arguments: by them Hugging Face's Trainer finds a data set's columns.
    """

    def __new__(cls, model: object = None, *args: Any, **kwargs: Any) -> PeftModel:
        """An object of the class that shows the signature of `model`; of `cls` itself where that is one already."""
        return super().__new__(
            _class_for(cast(Any, type(model))) if cls is PeftModel and isinstance(model, nn.Module) else cls
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (type(self.base_model),), self.__dict__

    def __init__(
        self,
        model: nn.Module,
        config: LoRAConfig,
        adapter_name: str = DEFAULT,
        adapters: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self._disabled = False
        if not isinstance(model, nn.Module):
            hint = ": load_pretrained returns a pair, (model, tokenizer)" if isinstance(model, tuple) else ""
            raise TypeError(f"expected a model, an nn.Module, got a {type(model).__name__}{hint}")
        if isinstance(model, PeftModel) and not model.peft_config:
            raise ValueError("this is a PeftModel: wrap the model that merge_and_unload or unload returned")
        if isinstance(model, PeftModel) or any(isinstance(m, LoRALinear) for m in model.modules()):
            raise ValueError("this model already has LoRA layers: add_adapter gives it another adapter")
        self.base_model, self.training = model, model.training
        self.peft_config: dict[str, LoRAConfig] = {}
        self._attach(adapter_name, config, adapters)
        self.set_adapter(adapter_name)

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the model inside. `adapter_names` gives each row of the batch its own adapter, or "__base__" for none.

        Rows of a batch that differ are for inference: raises ValueError in training mode, while merged, for an
        unknown name, and for another number of names than rows.
        """
        if adapter_names is None:
            return self.base_model(*args, **kwargs)
        with self._row_by_row(adapter_names):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the inner model's `generate`; `adapter_names` as in `forward`."""
        inner: Any = self.base_model
        if adapter_names is None:
            return inner.generate(*args, **kwargs)
        with self._row_by_row(adapter_names):
            return inner.generate(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As any module's, but of two tensors in one memory (a tied head) one is a copy: safetensors needs it."""
        found: dict[str, Any] = super().state_dict(*args, **kwargs)
        seen: set[int] = set()
        for name, tensor in found.items():
            place = tensor.untyped_storage().data_ptr() if isinstance(tensor, Tensor) and not tensor.is_meta else 0
            if place and place in seen and not isinstance(tensor, nn.Parameter):  # one of keep_vars stays what it is
                found[name] = tensor.clone()
            seen.add(place)
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As any module's. Raises ValueError, before anything is loaded, where the weights or the model are merged."""
        merged = any(layer.merged for layer in self.lora_layers().values())
        if merged or any(f"base_model.{name}.merged" in state_dict for name in self.lora_layers()):
            refuse_merged(merged)
        return super().load_state_dict(state_dict, *args, **kwargs)

    @contextmanager
    def _row_by_row(self, adapter_names: Sequence[str]) -> Iterator[None]:
        if isinstance(adapter_names, str) or not adapter_names:
            raise ValueError(f"adapter_names is a list, one name a row, got {adapter_names!r}")
        for name in set(adapter_names) - {BASE}:
            self._check_known(name)
        layers = [] if self._disabled else self._adapted().values()
        if self.base_model.training:
            raise ValueError("adapter_names is for inference: call model.eval() first")
        if any(layer.merged for layer in layers):
            raise ValueError("adapter_names cannot choose among merged adapters: call unmerge_adapter first")
        try:
            for layer in layers:
                layer.rows = tuple(adapter_names)
            yield
        finally:
            for layer in layers:
                layer.rows = ()

    def get_base_model(self) -> nn.Module:
        """The model inside, with the adapters in it."""
        return self.base_model

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
        for layer in self._adapted().values():
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

    def _adapted(self) -> dict[str, LoRALinear | TrainedCopy]:
        """The LoRA layers, and the modules that are trained in full."""
        named = self.base_model.named_modules()
        return {name: m for name, m in named if isinstance(m, (LoRALinear, TrainedCopy))}

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters in use; empty where all are disabled."""
        return list(dict.fromkeys(name for layer in self._adapted().values() for name in layer.active))

    @contextmanager
    def _all_or_none(self) -> Iterator[list[LoRALinear | TrainedCopy]]:
        """Change the layers; if one refuses, all are as they were before."""
        layers = list(self._adapted().values())
        before = [(layer, layer.active, layer.merged) for layer in layers]
        try:
            yield layers
        except BaseException:
            for layer, active, merged in before:
                if isinstance(layer, LoRALinear):
                    layer.unmerge()
                layer.activate(active)
                if isinstance(layer, LoRALinear) and merged:
                    layer.merge()
            raise

    def add_adapter(self, adapter_name: str, config: LoRAConfig) -> None:
        """Add a new adapter, random A and zero B; `set_adapter` makes it the one in use."""
        self._attach(adapter_name, config)

    def _attach(self, adapter_name: str, config: LoRAConfig, adapters: Mapping[str, nn.Module] | None = None) -> None:
        """Put in these bypasses and trained copies, or new ones, under a name."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter_name):
            raise ValueError(f"an adapter's name is letters, digits, '_' and '-', got {adapter_name!r}")
        if adapter_name == BASE or hasattr(nn.ModuleDict(), adapter_name):
            raise ValueError(f"an adapter cannot be called {adapter_name!r}: that name has a meaning here already")
        if adapter_name in self.peft_config:
            raise ValueError(f"there is already an adapter called {adapter_name!r}; delete_adapter removes it")
        # All bypasses are made before the first is put in: a bad rank leaves the model as it was.
        for name, adapter in (adapters or new_adapters(self.base_model, config)).items():
            layer: Any = self.base_model.get_submodule(name)
            if not isinstance(layer, (LoRALinear, TrainedCopy)):
                wrap = partial(LoRALinear, kind=config.adapter_class) if isinstance(adapter, LoRA) else TrainedCopy
                layer = wrap(layer)
                replace_module(self.base_model, layer.base, layer)
            layer.adapters[adapter_name] = adapter.requires_grad_(False)
            layer.train(layer.base.training)
        self.peft_config[adapter_name] = config

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Use this adapter (or the sum of these), and no other. Copies no weights.

        If an adapter was being trained, the new one now is instead.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(dict.fromkeys(adapter_name))
        for name in names:
            self._check_known(name)
        training = any(p.requires_grad for p in self.parameters())
        with self._all_or_none() as layers:
            for layer in layers:
                layer.activate([name for name in names if name in layer.adapters])
        if training:
            self._freeze_all_but_active()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was in use, the model runs on the others that were, or on the base alone."""
        self._check_known(adapter_name)
        with self._all_or_none() as layers:
            for layer in layers:
                layer.activate([name for name in layer.active if name != adapter_name])
        for layer in layers:
            if adapter_name in layer.adapters:
                del layer.adapters[adapter_name]
        del self.peft_config[adapter_name]

    @torch.no_grad()
    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str = "cat"
    ) -> None:
        """Add an adapter that changes each weight by Σ weightᵢ·(s·A·B)ᵢ, the weighted sum of what `adapters` change.

        The sum is exact: A₁ and A₂ stand side by side, weighted B₁ above B₂, and ranks add up. Where the rank would
        pass min(d, k), one factor becomes the sum itself and the other the identity. `set_adapter` makes it the one
        in use. PEFT's other combination types are not exact sums, and raise ValueError.
        """
        if combination_type != "cat":
            raise ValueError(f"combination_type {combination_type!r} is not supported: 'cat' is, which is exact")
        if not adapters or len(adapters) != len(weights) or not all(map(math.isfinite, weights)):
            raise ValueError(f"expected a finite weight for each adapter, got {list(weights)} for {list(adapters)}")
        for name in adapters:
            self._check_known(name)
            kind, copies = self.peft_config[name].adapter_class, config_copies(self.base_model, self.peft_config[name])
            if copies:
                raise ValueError(f"{name!r} trains {copies[0]} in full, and whole modules do not add up")
            if not vars(kind).get("fusible"):
                raise ValueError(f"{name!r} is {kind.__name__}, and only LoRA's changes add up")
        made = {}
        for layer_name, layer in self.lora_layers().items():
            parts = [(layer.adapters[n], w) for n, w in zip(adapters, weights) if n in layer.adapters]
            if parts:
                made[layer_name] = weighted_sum(parts)
        first = next(iter(made.values()))
        config = replace(
            self.peft_config[adapters[0]],
            target_modules=exact_targets(self.base_model, list(made)),
            r=first.rank, lora_alpha=first.scale * first.rank, use_rslora=False,
            rank_pattern=pattern_of({n: a.rank for n, a in made.items()}, first.rank),
            alpha_pattern=pattern_of({n: a.scale * a.rank for n, a in made.items()}, first.scale * first.rank),
        )  # fmt: skip
        self._attach(adapter_name, config, made)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context the model is the base alone; afterwards everything is as it was, merged or not.

        It is the base for rows named by `adapter_names` too. Merging raises ValueError in here.
        """
        before, self._disabled = (self._disabled, list(self._adapted().values())), True
        was_disabled, layers = before
        active = [layer.active for layer in layers]
        for layer in layers:
            layer.activate([])
        try:
            yield
        finally:
            self._disabled = was_disabled
            for layer, names in zip(layers, active, strict=True):
                layer.activate([name for name in names if name in layer.adapters])  # one may be deleted by now

    def _check_known(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise ValueError(f"no adapter called {adapter_name!r}; there are {list(self.peft_config)}")

    # --- merging ----------------------------------------------------------------------------------

    def merge_adapter(self) -> None:
        """Fold the active adapters into the weights: inference at the base's speed. `unmerge_adapter` is exact.

        Raises TypeError where a weight is no float, ValueError where a sum is not finite, and within
        `disable_adapter`; nothing is merged then.
        """
        if self._disabled:
            raise ValueError("the adapters are switched off here: merge outside of disable_adapter")
        with self._all_or_none():
            for name, layer in self.lora_layers().items():
                try:
                    layer.merge()
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error

    def unmerge_adapter(self) -> None:
        """Take the adapters out of the weights again, bit for bit."""
        for layer in self.lora_layers().values():
            layer.unmerge()

    def merge_and_unload(self, safe_merge: bool = True) -> nn.Module:
        """The plain model, frozen, with the active adapters folded in; this wrapper is spent.

        Raises as `merge_adapter` does. Every merge is checked, so PEFT's `safe_merge` changes nothing.
        """
        self.merge_adapter()
        return self._take_out()

    def unload(self) -> nn.Module:
        """The plain base model, bit for bit as before `get_peft_model`, but frozen; this wrapper is spent."""
        self.unmerge_adapter()
        for layer in self._adapted().values():
            layer.activate([])
        return self._take_out()

    def _take_out(self) -> nn.Module:
        for layer in self._adapted().values():
            replace_module(self.base_model, layer, layer.in_use if isinstance(layer, TrainedCopy) else layer.base)
        self.peft_config.clear()
        return self.base_model

    # --- files ------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, adapter_name: str | None = None) -> None:
        """Write an adapter (by default the active one) as a folder that PEFT opens too.

        Layers of our GPT-2 get the names they have in Hugging Face's, so that the adapter fits both. A sample of
        the base's weights goes with it, so that another base is noticed. Raises as `write_adapter` does.
        """
        if adapter_name is None:
            if len(self.active_adapters) != 1:
                raise ValueError(f"active are {self.active_adapters}: say which of {list(self.peft_config)} to save")
            adapter_name = self.active_adapters[0]
        self._check_known(adapter_name)
        config, model = self.peft_config[adapter_name], self.base_model
        own = {name: layer for name, layer in self.lora_layers().items() if adapter_name in layer.adapters}
        layers = {file_name(model, n): dict(layer.adapters[adapter_name].state_dict()) for n, layer in own.items()}
        settings = {file_name(model, name): rank_and_alpha(config, model, name) for name in own}
        if config.adapter_class is PiSSA:  # its change, A·B - A₀·B₀, is a plain LoRA's of twice the rank
            layers = {n: dict(zip("AB", la.adapters[adapter_name].factors())) for n, la in zip(layers, own.values())}
            more = math.sqrt(2) if config.use_rslora else 2
            settings = {name: (2 * rank, more * alpha) for name, (rank, alpha) in settings.items()}
            config = replace(config, r=2 * config.r, lora_alpha=more * config.lora_alpha, init_lora_weights=True)
        saved = replace(
            config,
            target_modules=saved_targets(model, config, list(own)),
            rank_pattern=pattern_of({name: rank for name, (rank, _) in settings.items()}, config.r),
            alpha_pattern=pattern_of({name: alpha for name, (_, alpha) in settings.items()}, config.lora_alpha),
        )
        copies = copies_to_save(model, adapter_name, self._adapted())
        write_adapter(
            folder, saved, layers, base_sample(model, list(own)), copies,
            task_type=config.task_type or ("CAUSAL_LM" if _is_causal(plain_model(model)) else None),
            fan_in_fan_out=isinstance(plain_model(model), GPT2Model)
            or any(not isinstance(layer.base, nn.Linear) for layer in own.values()),
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        folder: str | Path,
        adapter_name: str = DEFAULT,
        *,
        check_base: bool = True,
        kind: type[LoRA] | None = None,
    ) -> PeftModel:
        """Put a saved adapter into `model`, ready for inference; `enable_lora_training` trains it on.

        `check_base=False` takes the adapter although the base's weights are not those it was made for.
        Raises AdapterError if the folder cannot be read or does not fit; `model` is then unchanged.
        """
        config, adapters = load_adapters(model, folder, check_base, kind)
        return cls(model, config, adapter_name, adapters).requires_grad_(False).eval()

    def load_adapter(
        self, folder: str | Path, adapter_name: str, *, check_base: bool = True, kind: type[LoRA] | None = None
    ) -> None:
        """Add a saved adapter under a name; `set_adapter` makes it the one in use. As `from_pretrained` otherwise."""
        config, adapters = load_adapters(self.base_model, folder, check_base, kind)
        self._attach(adapter_name, config, adapters)


@cache
def _class_for(base: Any) -> type[PeftModel]:
    """PeftModel for a model of this class, with the signature of its forward, and `adapter_names`."""

    def forward(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        return PeftModel.forward(self, *args, **kwargs)

    own = inspect.signature(base.forward)
    more = inspect.signature(PeftModel.forward).parameters["adapter_names"]
    parameters = [p for p in own.parameters.values() if p.name != more.name]
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
    shown = own.replace(parameters=[*parameters[:at], more, *parameters[at:]])
    forward.__signature__ = shown  # type: ignore[attr-defined]
    return type("PeftModel", (PeftModel,), {"forward": forward, "__doc__": PeftModel.__doc__, "__module__": __name__})


def _blank(base: Any) -> PeftModel:
    """An object for `copy` and `pickle` to fill."""
    return object.__new__(_class_for(base))


def _is_causal(model: nn.Module) -> bool:
    """Whether a model is a language model of one causal stack: what PEFT takes as CAUSAL_LM."""
    two_stacks = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return isinstance(model, GPT2Model) or (hasattr(model, "prepare_inputs_for_generation") and not two_stacks)
