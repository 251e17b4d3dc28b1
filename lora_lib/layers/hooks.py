"""Whether calling a module may do more than its `forward`, so that a faster path would skip something."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as hooks_of_all_modules
from torch.utils.module_tracker import ModuleTracker


def runs_only_forward(module: nn.Module) -> bool:
    """Whether calling a module runs only its class's `forward`: no hooks, and no `forward` set on the instance."""
    m: Any = module
    hooks = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return not hooks and "forward" not in m.__dict__ and not _all_modules_are_watched()


def _all_modules_are_watched() -> bool:
    """Whether a global hook could see or change a result. Those of PyTorch's FLOP counter only track module names."""
    hooks = hooks_of_all_modules
    if not hooks._has_any_global_hook():
        return False
    forward = [*hooks._global_forward_hooks.values(), *hooks._global_forward_pre_hooks.values()]
    backward = [*hooks._global_backward_hooks.values(), *hooks._global_backward_pre_hooks.values()]
    return bool(backward) or not all(isinstance(getattr(h, "__self__", None), ModuleTracker) for h in forward)
