"""GPT-2 in one file: the model that the book adapts.

Module names are those of the released checkpoints (`wte`, `wpe`, `h.0.attn.c_attn`, …), so weights
load by name. Architecture: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

Shapes in comments: B batch, T time (tokens), C width (`n_embd`), H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lora_lib.gpt2.loss import chunked_cross_entropy, cross_entropy_sum
from lora_lib.layers.hooks import runs_only_forward
from lora_lib.settings import FLAG, check, number, setting, whole

_SHARE = number("from 0 to 1", lambda value: 0 <= value <= 1)


@dataclass(frozen=True)
class GPT2Config:
    """The sizes and options in which one GPT-2 differs from another. Field names are Hugging Face's."""

    vocab_size: int = setting(whole(1), 50257)
    n_positions: int = setting(whole(1), 1024)
    n_embd: int = setting(whole(1), 768)
    n_layer: int = setting(whole(1), 12)
    n_head: int = setting(whole(1), 12)
    embd_pdrop: float = setting(_SHARE, 0.1)
    resid_pdrop: float = setting(_SHARE, 0.1)
    attn_pdrop: float = setting(_SHARE, 0.1)
    layer_norm_epsilon: float = setting(number("above 0", lambda value: 0 < value < math.inf), 1e-5)
    tie_word_embeddings: bool = setting(FLAG, True)

    def __post_init__(self) -> None:
        check(self)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")


GPT_CONFIG_124M = GPT2Config()
GPT_CONFIG_355M = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
GPT_CONFIG_774M = GPT2Config(n_embd=1280, n_layer=36, n_head=20)
GPT_CONFIG_1558M = GPT2Config(n_embd=1600, n_layer=48, n_head=25)

# Hugging Face stores these weights as (in, out), in a layer called Conv1D; nn.Linear has (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class KVCache:
    """Keys and values of the tokens already read, one pair per block, each (B, H, T, C/H)."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """The number of tokens read so far."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values in one block; returns all of them."""
        if layer in self.layers:
            past_k, past_v = self.layers[layer]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        self.layers[layer] = k, v
        return k, v


class Attention(nn.Module):
    """Causal multi-head self-attention: each token looks at itself and at the tokens before it."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head, self.attn_pdrop = layer, config.n_head, config.attn_pdrop
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (z.view(B, T, self.n_head, -1).transpose(1, 2) for z in self.c_attn(x).split(C, dim=2))
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        past = k.shape[2] - T
        # A new token sees all past tokens and, among the new ones, itself and those before it.
        mask = None if past == 0 or T == 1 else x.new_ones(T, past + T, dtype=torch.bool).tril(past)
        y = F.scaled_dot_product_attention(
            q, k, v, mask, self.attn_pdrop if self.training else 0.0, is_causal=past == 0 and T > 1
        )
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, applied to each token separately."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nn.Module):
    """GPT-2 with its language-model head: token ids (B, T) in, logits (B, T, V) out.

    Weights are random; `lora_lib.load_pretrained` gives trained ones. The head `out_head` shares its weight with the
    token embedding `wte` if `config.tie_word_embeddings` is true, as in every released GPT-2.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.out_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.out_head.weight = self.wte.weight
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, (Attention, MLP)):  # 2 · n_layer terms are added to the stream: keep its variance
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def get_output_embeddings(self) -> nn.Module:
        """The head, under the method name that Hugging Face's models use."""
        return self.out_head

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each block's input during training, and recompute the block in the backward pass.

        This saves memory and costs a second forward pass of each block (Chen et al., 2016, arXiv 1604.06174).
        """
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again, which is the default."""
        self.gradient_checkpointing = False

    def features(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Token ids (B, T) to the final hidden states (B, T, C), before the head.

        With a `cache`, `ids` are the tokens that follow those already read into it.
        """
        if not ids.numel():
            raise ValueError(f"got no token, of shape {tuple(ids.shape)}: pass a text of one or more (two for a loss)")
        past = cache.length if cache is not None else 0
        end = past + ids.shape[1]
        if end > self.config.n_positions:
            raise ValueError(
                f"{end} tokens do not fit this model's context of {self.config.n_positions}: "
                "shorten the prompt, or ask for fewer new tokens"
            )
        try:
            x = self.drop(self.wte(ids) + self.wpe(torch.arange(past, end, device=ids.device)))
        except IndexError as error:  # on the CPU; a GPU raises a device assertion instead
            found = f"{int(ids.min())} to {int(ids.max())}"
            last = self.config.vocab_size - 1
            raise IndexError(f"token ids must be from 0 to {last} in this model, got {found}") from error
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.h:
            # Not reentrant: the reentrant kind gives A and B no gradient if its input comes from frozen layers and
            # does not require one.
            x = checkpoint(block, x, cache, use_reentrant=False) if again else block(x, cache)
        return self.ln_f(x)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V): at each position, a score for every token that could come next."""
        return self.out_head(self.features(ids, cache))

    def loss_sum(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy summed over the targets: ids and targets (B, T), targets -100 where nothing is learned.

        The logits are never held all at once (`chunked_cross_entropy`), unless calling the model does more than this
        class's `forward`: a subclass with its own, or hooks. Then the model is called as usual.
        """
        if type(self).forward is not GPT2Model.forward or not runs_only_forward(self):
            return cross_entropy_sum(self(ids), targets)
        return chunked_cross_entropy(self.out_head, self.features(ids), targets)

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        stop_token: int | None = None,
        prompt_lengths: list[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each row of `ids` (B, T) by up to `max_new_tokens`; returns (B, T + new).

        `temperature` 0 takes the most likely token (greedy); above 0 it samples, from the `top_k` most likely tokens
        if given. A row ends at `stop_token` and is then filled with it. Prompts of different lengths share a batch if
        they are padded on the right and `prompt_lengths` are given: each row's continuation starts where its own prompt
        ends, so padding is never attended to.
        """
        B, T = ids.shape
        lengths = torch.tensor(prompt_lengths or [T] * B, device=ids.device)
        if T == 0 or int(lengths.min()) < 1 or int(lengths.max()) > T or len(lengths) != B:
            raise ValueError(f"every row needs a prompt of 1 to {T} tokens; got lengths {lengths.tolist()}")
        first, last = int(lengths.min()), int(lengths.max()) + max_new_tokens
        if last > self.config.n_positions:
            raise ValueError(
                f"a prompt of {last - max_new_tokens} tokens and {max_new_tokens} new ones do not fit "
                f"this model's context of {self.config.n_positions}"
            )
        out = F.pad(ids[:, : last - max_new_tokens], (0, max_new_tokens), value=stop_token or 0)
        done = torch.zeros(B, dtype=torch.bool, device=ids.device)
        cache, read = KVCache(), 0
        with kept_modes(self):
            self.eval()
            for t in range(first, last):
                logits = self.out_head(self.features(out[:, read:t], cache)[:, -1])  # (B, V)
                read = t
                token = _pick(logits, temperature, top_k, generator)
                if stop_token is not None:
                    token = token.masked_fill(done, stop_token)
                writes = (t >= lengths) & (t < lengths + max_new_tokens)  # a row still in its prompt keeps its token
                out[:, t] = torch.where(writes, token, out[:, t])
                if stop_token is not None:
                    done |= writes & (token == stop_token)
                    if bool(done.all()):
                        return out[:, : t + 1]
        return out


def hf_name(name: str) -> str:
    """Hugging Face's name for a GPT-2 module or parameter: `transformer.h.0.mlp` for our `h.0.mlp`."""
    return "lm_head" + name.removeprefix("out_head") if name.startswith("out_head") else "transformer." + name


def own_name(name: str) -> str:
    """Our name for Hugging Face's. Old releases have no `transformer.` prefix."""
    is_head = name.startswith("lm_head")
    return "out_head" + name.removeprefix("lm_head") if is_head else name.removeprefix("transformer.")


def other_layout(name: str, tensor: Tensor) -> Tensor:
    """Convert a tensor between our layout and the file's, either way: it is transposed if the two differ."""
    return tensor.T if name.endswith(TRANSPOSED) else tensor


def expect_model(model: object) -> nn.Module:
    """The model itself. Raises TypeError for anything else, such as the pair that `load_pretrained` returns."""
    if isinstance(model, nn.Module):
        return model
    hint = ": load_pretrained returns a pair, (model, tokenizer)" if isinstance(model, tuple) else ""
    raise TypeError(f"expected a model, an nn.Module, got a {type(model).__name__}{hint}")


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of each module of `model` afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _pick(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token per row of logits (B, V): the most likely one, or a sample."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        floor = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
