"""Put LoRA layers into any model and manage them: the counterpart of Hugging Face PEFT's `PeftModel`.

A method that also exists in PEFT has PEFT's name and meaning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lora_lib.adapters.combine import combined
from lora_lib.adapters.config import LoRAConfig, check_arguments, checked_config, config_of
from lora_lib.adapters.load import load_parts
from lora_lib.adapters.names import Names
from lora_lib.adapters.plan import Parts, make_plan, new_parts
from lora_lib.adapters.save import save_adapter
from lora_lib.gpt2.model import expect_model
from lora_lib.layers.adapted import BASE, AdaptedLayer, adapted_layers, all_or_none, put_module, refuse_merged
from lora_lib.layers.modules_to_save import ModulesToSave
from lora_lib.lora_linear import LoRA, LoRALinear

DEFAULT = "default"


def get_peft_model(
    model: nn.Module,
    target_modules: LoRAConfig | Sequence[str] | str | None = None,
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
    *,
    adapter_name: str = DEFAULT,
    **settings: Any,
) -> PeftModel:
    """Wrap the chosen linear layers of `model` with LoRA, in place, and freeze everything else.

    The settings are a `LoRAConfig` as the second argument, or its fields by keyword. `r` may also be called
    `lora_rank`. `target_modules` is a list of layer names (`"c_attn"`, or dotted, `"h.0.attn.c_attn"`), a regular
    expression for whole dotted names, or `"all-linear"`, the default: every linear layer except the head, which the
    model's `get_output_embeddings` returns. At first the output is unchanged, unless
    `init_lora_weights` says otherwise.

    Raises ValueError if a target matches nothing, or something that is not a linear layer, and TypeError for a
    setting that `LoRAConfig` does not have, or one given beside a `LoRAConfig`.
    """
    named = {"target_modules": target_modules, "lora_rank": lora_rank, "lora_alpha": lora_alpha,
             "lora_dropout": lora_dropout}  # fmt: skip
    given = {name: value for name, value in named.items() if value is not None} | settings
    wrapped = PeftModel(model, config_of(given), adapter_name)
    wrapped._freeze_all_but_active()
    return wrapped


class PeftModel(nn.Module):
    """A model with LoRA layers in it, and named adapters that can be switched, saved and merged.

    Made by `get_peft_model` or `PeftModel.from_pretrained`. Calls, and attributes that it does not have itself
    (`config`, …), go to the model inside, `base_model`. Trainers that look into a model, as those of transformers and
    TRL do, take the model inside: `Trainer(model.get_base_model(), …)`.
    """

    def __init__(
        self, model: nn.Module, config: LoRAConfig, adapter_name: str = DEFAULT, parts: Parts | None = None
    ) -> None:
        super().__init__()
        self._disabled = False
        self._frozen: set[str] = set()  # the adapters that were opened for inference
        _check_model(model)
        self.base_model, self.training = model, model.training
        self.peft_config: dict[str, LoRAConfig] = {}
        self._modules_of: dict[str, list[str]] = {}  # for each adapter, the modules that it was put into
        self._attach(adapter_name, config, parts)
        self.set_adapter(adapter_name)

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the model inside. `adapter_names` gives each row of the batch its adapter, or "__base__" for none.

        `adapter_names` is for inference: raises ValueError in training mode, while merged, for an unknown name, for
        another number of names than rows, and if the model computes with a layer's weight itself.
        """
        with nullcontext() if adapter_names is None else self._row_by_row(adapter_names):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the inner model's `generate`. `adapter_names` works as in `forward`."""
        inner: Any = self.base_model
        if adapter_names is None:
            return inner.generate(*args, **kwargs)
        usual = kwargs.get("generation_config") or getattr(inner, "generation_config", None)
        copies = [kwargs.get(name) or getattr(usual, name, None) or 1 for name in ("num_beams", "num_return_sequences")]
        with self._row_by_row(adapter_names, max(copies)):
            return inner.generate(*args, **kwargs)

    generation_config: Any = property(  # as in PEFT, a new one goes to the model inside
        lambda self: self.base_model.generation_config,
        lambda self, config: setattr(self.base_model, "generation_config", config),
    )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As for any module. Raises ValueError, before anything is loaded, if the weights or the model are merged."""
        layers = self._adapted()
        merged = any(layer.merged for layer in layers.values())
        if merged or any(f"base_model.{name}.merged" in state_dict for name in layers):
            refuse_merged(merged)
        return super().load_state_dict(state_dict, *args, **kwargs)

    @contextmanager
    def _row_by_row(self, adapter_names: Sequence[str], copies: int = 1) -> Iterator[None]:
        if isinstance(adapter_names, str) or not adapter_names:
            raise ValueError(f"adapter_names must be a list with one name for each row, got {adapter_names!r}")
        for name in set(adapter_names) - {BASE}:
            self._check_known(name)
        layers = [] if self._disabled else self._adapted().values()
        if self.base_model.training:
            raise ValueError("adapter_names is for inference: call model.eval() first")
        if any(layer.merged for layer in layers):
            raise ValueError("adapter_names cannot choose among merged adapters: call unmerge_adapter first")
        try:
            for layer in layers:
                layer.rows, layer.copies = tuple(adapter_names), copies
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
            if name == "base_model":  # not set yet: looking it up would recurse forever
                raise
        if hasattr(self.base_model, name):
            return getattr(self.base_model, name)
        raise AttributeError(
            f"neither lora_lib's PeftModel nor the {type(self.base_model).__name__} in it has {name!r}"
        )

    # --- training ---------------------------------------------------------------------------------

    def enable_lora_training(self) -> PeftModel:
        """Training mode with the base frozen and the active adapters' A and B trainable; unmerges first."""
        self._check_enabled("enable_lora_training")
        if not self.lora_layers():
            raise ValueError(
                "no LoRA layer is left in this model (merge_and_unload removes them): call get_peft_model again"
            )
        self.unmerge_adapter()
        self._freeze_all_but_active()
        return self.train()

    def _freeze_all_but_active(self) -> None:
        self.requires_grad_(False)
        self._frozen.difference_update(self.active_adapters)
        for layer in self._adapted().values():
            for name in layer.active:
                layer.adapters[name].requires_grad_(True)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters, counted in numbers; a tied weight counts once."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print both counts and their ratio, in PEFT's format."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    # --- named adapters ---------------------------------------------------------------------------

    def lora_layers(self) -> dict[str, LoRALinear]:
        """The LoRA layers by their dotted names in the model."""
        return adapted_layers(self.base_model, LoRALinear)

    def _adapted(self) -> dict[str, AdaptedLayer]:
        """The LoRA layers and the modules trained in full, by their dotted names in the model."""
        return adapted_layers(self.base_model)

    def _parts(self, adapter_name: str) -> Parts:
        """What an adapter has in the model, by the names of its layers."""
        return {n: m.adapters[adapter_name] for n, m in self._adapted().items() if adapter_name in m.adapters}

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters in use; empty if all are disabled."""
        return list(dict.fromkeys(name for layer in self._adapted().values() for name in layer.active))

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the adapter in use, or a list of names unless it is one."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    def add_adapter(self, adapter_name: str, config: LoRAConfig) -> None:
        """Add a new adapter, started as its `init_lora_weights` says. `set_adapter` makes it active."""
        self._attach(adapter_name, checked_config(config))

    def _attach(self, adapter_name: str, config: LoRAConfig, parts: Parts | None = None) -> None:
        """Put these parts, or new ones, into the model under a name."""
        if not isinstance(adapter_name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", adapter_name):
            raise ValueError(f"an adapter's name can have letters, digits, '_' and '-', got {adapter_name!r}")
        if adapter_name == BASE or hasattr(nn.ModuleDict(), adapter_name):
            raise ValueError(f"an adapter cannot be called {adapter_name!r}: that name has a meaning here already")
        if adapter_name in self.peft_config:
            raise ValueError(f"there is already an adapter called {adapter_name!r}; delete_adapter removes it")
        # All parts are made before the first one is put in, so that a bad rank leaves the model unchanged.
        if parts is None:
            names = Names(self.base_model)
            parts = new_parts(names, config, make_plan(names, config))
        for name, part in parts.items():
            layer: Any = self.base_model.get_submodule(name)
            if not isinstance(layer, AdaptedLayer):
                layer = LoRALinear(layer, adapter_cls=type(part)) if isinstance(part, LoRA) else ModulesToSave(layer)
                put_module(self.base_model, name, layer)
            layer.adapters[adapter_name] = part.requires_grad_(False)
            layer.train(layer.base.training)
        self.peft_config[adapter_name] = config
        self._modules_of[adapter_name] = list(parts)
        self._frozen.discard(adapter_name)

    def set_adapter(self, adapter_name: str | Sequence[str], **others: Any) -> None:
        """Make this adapter (or the sum of these) the active one; [] leaves the base alone. Copies no weights.

        It is the one that is trained, unless it was opened for inference; other parameters stay trained or frozen.
        Raises ValueError for an unknown name, and within `disable_adapter`.
        """
        check_arguments(others)
        self._check_enabled("set_adapter")
        names = list(dict.fromkeys([adapter_name] if isinstance(adapter_name, (str, type(None))) else adapter_name))
        for name in names:
            self._check_known(name)
        with all_or_none(self._adapted()) as layers:
            for layer in layers.values():
                layer.activate([name for name in names if name in layer.adapters])
        for layer in layers.values():
            for name, part in layer.adapters.items():
                part.requires_grad_(name in layer.active and name not in self._frozen)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter. If it was active, the model continues with the other active ones, or as the base alone."""
        self._check_known(adapter_name)
        with all_or_none(self._adapted()) as layers:
            for layer in layers.values():
                layer.activate([name for name in layer.active if name != adapter_name])
        for layer in layers.values():
            if adapter_name in layer.adapters:
                del layer.adapters[adapter_name]
        del self.peft_config[adapter_name], self._modules_of[adapter_name]

    @torch.no_grad()
    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str = "cat",
        **others: Any,
    ) -> None:  # fmt: skip
        """Add an adapter that changes each weight by Σ weightᵢ·(s·A·B)ᵢ, the weighted sum of what `adapters` change.

        The sum is exact: A₁ and A₂ are put side by side, the weighted B₁ above B₂, and the ranks add up, to min(d, k)
        at most. `set_adapter` makes it active. PEFT's other combination types are not exact, and raise ValueError.
        """
        check_arguments(others)
        if combination_type != "cat":
            raise ValueError(f"combination_type {combination_type!r} is not supported: use 'cat', which is exact")
        if not adapters or len(adapters) != len(weights) or not all(map(math.isfinite, weights)):
            raise ValueError(f"expected a finite weight for each adapter, got {list(weights)} for {list(adapters)}")
        for name in adapters:
            self._check_known(name)
        parts = [(name, weight, self._parts(name)) for name, weight in zip(adapters, weights)]
        self._attach(adapter_name, *combined(Names(self.base_model), self.peft_config[adapters[0]], parts))
        if self._frozen.issuperset(adapters):
            self._frozen.add(adapter_name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context the model is the base alone; afterwards its state is restored, merged or not.

        Inside it, `adapter_names` gives every row the base, and switching, training and merging raise ValueError.
        """
        was_disabled, active = self._disabled, {layer: layer.active for layer in self._adapted().values()}
        self._disabled = True
        for layer in active:
            layer.activate([])
        try:
            yield
        finally:
            self._disabled = was_disabled
            for layer, names in active.items():
                layer.activate([name for name in names if name in layer.adapters])  # it may have been deleted meanwhile

    def _check_enabled(self, method: str) -> None:
        if self._disabled:
            raise ValueError(f"the adapters are disabled here: call {method} outside of disable_adapter")

    def _check_known(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise ValueError(f"no adapter called {adapter_name!r}; there are {list(self.peft_config)}")

    # --- merging ----------------------------------------------------------------------------------

    def merge_adapter(self, **others: Any) -> None:
        """Fold the active adapters into the weights, for inference at the base's speed; `unmerge_adapter` is exact.

        Raises as `LoRALinear.merge` does, and ValueError within `disable_adapter`; nothing is merged then.
        """
        check_arguments(others)
        self._check_enabled("merge_adapter")
        with all_or_none(self._adapted()) as layers:
            for name, layer in layers.items():
                try:
                    layer.merge()
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error

    def unmerge_adapter(self) -> None:
        """Put the base's own weights back, bit for bit. Raises ValueError within `disable_adapter`."""
        self._check_enabled("unmerge_adapter")
        for layer in self._adapted().values():
            layer.unmerge()

    def merge_and_unload(self, **others: Any) -> nn.Module:
        """Return the plain model, frozen, with the active adapters folded in; this wrapper is empty afterwards.

        Raises as `merge_adapter` does.
        """
        self.merge_adapter(**others)
        return self._take_out()

    def unload(self) -> nn.Module:
        """Return the base, bit for bit as before `get_peft_model`, but frozen; this wrapper is empty afterwards."""
        self.unmerge_adapter()
        for layer in self._adapted().values():
            layer.activate([])
        return self._take_out()

    def _take_out(self) -> nn.Module:
        for name, layer in self._adapted().items():
            put_module(self.base_model, name, layer.in_use)
        self.peft_config.clear()
        self._modules_of.clear()
        return self.base_model

    # --- files ------------------------------------------------------------------------------------

    def push_to_hub(self, repo_id: str, adapter_name: str | None = None, **settings: Any) -> None:
        """Upload what `save_pretrained` writes; `settings` (private, token, …) go to huggingface_hub's create_repo."""
        import huggingface_hub  # imported here: it is slow, and not needed offline

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, adapter_name)
            repo_id = huggingface_hub.create_repo(repo_id, exist_ok=True, **settings).repo_id  # with the user's name
            huggingface_hub.upload_folder(repo_id=repo_id, folder_path=folder, token=settings.get("token"))

    def save_pretrained(self, folder: str | Path, adapter_name: str | None = None, **others: Any) -> None:
        """Write an adapter (by default the active one) to a folder that PEFT opens too.

        Layers of our GPT-2 are saved under Hugging Face's names. Samples of the base's weights are saved too, so that a
        wrong base is noticed. Raises as `write_adapter` does, and warns if a layer that had the adapter was replaced.
        """
        check_arguments(others)
        if adapter_name is None:
            active = self.active_adapters
            if len(active) != 1:
                raise ValueError(f"the active adapters are {active}: say which of {list(self.peft_config)} to save")
            (adapter_name,) = active
        self._check_known(adapter_name)
        parts = self._parts(adapter_name)
        lost = [name for name in self._modules_of[adapter_name] if name not in parts]
        save_adapter(self.base_model, folder, self.peft_config[adapter_name], parts, lost)

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, folder: str | Path, adapter_name: str = DEFAULT, is_trainable: bool = False, **how: Any
    ) -> PeftModel:
        """Put a saved adapter into `model`, for inference, or with `is_trainable` to train it further.

        `check_base=False` opens the adapter even if it was made for a base with other weights. `adapter_cls` is the
        class of its bypasses, if you wrote your own. `subfolder` says where in the folder it is.
        Raises AdapterError if the folder cannot be read or does not fit; `model` is then unchanged.
        """
        _check_model(model)
        config, parts = load_parts(model, folder, **how)
        opened = cls(model, config, adapter_name, parts)
        opened._freeze_all_but_active()
        if is_trainable:
            return opened
        opened._frozen.add(adapter_name)
        return opened.requires_grad_(False).eval()

    def load_adapter(self, folder: str | Path, adapter_name: str, is_trainable: bool = False, **how: Any) -> None:
        """Add a saved adapter under a name; `set_adapter` makes it active. Otherwise as `from_pretrained`."""
        self._attach(adapter_name, *load_parts(self.base_model, folder, **how))
        if not is_trainable:
            self._frozen.add(adapter_name)


def _check_model(model: object) -> None:
    """Raise TypeError unless this is a model, and ValueError if it has adapters already."""
    model = expect_model(model)
    if adapted_layers(model):
        raise ValueError("this model already has LoRA layers: add_adapter gives it another adapter")
    if isinstance(model, PeftModel):
        raise ValueError("this is an empty PeftModel: wrap the model that merge_and_unload or unload returned")
    if any(type(module).__module__.split(".")[0] == "peft" for module in model.modules()):
        raise ValueError("PEFT has adapted this model: call its merge_and_unload or unload, and wrap what that returns")
