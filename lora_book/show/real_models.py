"""Pictures of what a chat model reads and learns, and of what a training step of a large model needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lora_book.measure import step_bytes
from lora_book.show.figures import BASE, CYCLE, FAINT, FULL, INK, LORA, PAPER
from lora_book.show.knobs import Knob, knob
from lora_lib.data import IGNORE, encode_chat

Chat = list[dict[str, str]]
IN_THE_LOSS = ["the answers", "the last answer", "every token", "every token but padding", "cut off at 27 tokens"]
CUT = 27  # tokens


def _llama(vocab: int, width: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "vocab_size": vocab, "num_hidden_layers": layers}
    return {"model_type": "llama", **sizes, "num_attention_heads": heads, "num_key_value_heads": kv, **more}


_TIED = {"tie_word_embeddings": True}
SIZES = {
    "0.5B": _llama(151936, 896, 4864, 24, 14, 2, model_type="qwen2", **_TIED),
    "1.5B": _llama(151936, 1536, 8960, 28, 12, 2, model_type="qwen2", **_TIED),
    "3B": _llama(128256, 3072, 8192, 28, 24, 8, **_TIED),
    "7B": _llama(32000, 4096, 11008, 32, 32, 32),
    "8B": _llama(128256, 4096, 14336, 32, 32, 8),
    "70B": _llama(128256, 8192, 28672, 80, 64, 8),
}
METHODS = {
    "full, 16 bits": {"bits": 16},
    "LoRA r = 16": {"bits": 16, "rank": 16},
    "QLoRA r = 16": {"bits": 4, "rank": 16},
}
LOADS = {  # sequences, tokens of each, checkpointing, whether the loss is computed in tiles
    "2 × 512": (2, 512, True, True),
    "2 × 512, no checkpointing": (2, 512, False, True),
    "8 × 512": (8, 512, True, True),
    "1 × 8,192": (1, 8192, True, True),
    "1 × 8,192, all logits at once": (1, 8192, True, False),
}


def hush() -> None:
    """Let no progress bar or warning of PEFT, TRL, transformers and bitsandbytes into a page."""
    import transformers

    warnings.simplefilter("ignore", FutureWarning)
    for name in ("bitsandbytes", "trl"):  # the first looks for a GPU
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def template_knob(tokenizer: Any, chats: Mapping[str, Chat]) -> Knob:
    """The text that the tokenizer's template makes of each chat, with and without the start of an answer."""

    def draw(chat: Chat, ask: str) -> str:
        text: str = tokenizer.apply_chat_template(chat, add_generation_prompt=ask == "yes", tokenize=False)
        return text

    return knob(
        draw,
        chat=chats,
        ask=["no", "yes"],
        labels={"chat": "turns", "ask": "ask for an answer"},
        caption="What the template makes of a chat: all that SmolLM2 reads.",
    )


def learned_tokens(tokenizer: Any, chat: Chat, how: str) -> tuple[list[str], list[bool]]:
    """The tokens of a chat, and whether each is in the loss, under one of the settings `IN_THE_LOSS`."""
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    targets = encode_chat(chat, tokenizer, answers="last" if how == "the last answer" else "all")[1]
    learned = [False, *(targets != IGNORE).tolist()]  # the first is given
    if how.startswith("every token"):
        hidden = tokenizer.pad_token_id if how == "every token but padding" else None
        learned = [False, *(token != hidden for token in whole[1:])]
    if how.startswith("cut off"):
        whole, learned = whole[:CUT], learned[:CUT]
    return [tokenizer.decode(token) for token in whole], learned


def loss_knob(tokenizer: Any, chats: Mapping[str, Chat]) -> Knob:
    """Each token of a chat in a box, blue where it is in the loss; it starts with the last chat."""

    def draw(chat: Chat, how: str) -> tuple[Figure, str]:
        tokens, learned = learned_tokens(tokenizer, chat, how)
        return token_boxes(tokens, learned), f"{sum(learned)} of {len(tokens)} tokens are learned"

    def say(chat: Chat, how: str) -> str:
        tokens, learned = learned_tokens(tokenizer, chat, how)
        return "learned: " + "".join(token for token, on in zip(tokens, learned) if on)

    return knob(
        draw,
        how=IN_THE_LOSS,
        chat=chats,
        labels={"how": "in the loss"},
        start={"chat": list(chats)[-1]},
        alt=say,
        caption="Which tokens are in the loss: blue is learned, grey is not.",
    )


def token_boxes(tokens: Sequence[str], learned: Sequence[bool]) -> Figure:
    """Tokens in boxes, line after line, with signs for spaces and ends of lines."""
    fig, ax = plt.subplots(figsize=(5, 1.8))
    x, y = 0.0, 0
    for token, blue in zip(tokens, learned):
        shown = token.replace("\n", "↵").replace(" ", "·")
        if x + len(shown) > 62:
            x, y = 0.0, y + 1
        box = {"facecolor": LORA if blue else FAINT, "lw": 0, "pad": 2}
        color = PAPER if blue else INK
        ax.text(x, y, shown, family="monospace", fontsize=9, parse_math=False, color=color, bbox=box)
        x += len(shown) + 1.1
    ax.set(xlim=(0, 66), ylim=(4.7, -0.8))
    ax.axis("off")
    return fig


def memory_knob() -> Knob:
    """What a training step of a model needs, in GiB, by what holds it, for full fine-tuning, LoRA and QLoRA."""

    def parts(size: str, load: tuple[int, int, bool, bool], method: Mapping[str, Any]) -> dict[str, float]:
        batch, time, checkpointing, tiles = load
        found = step_bytes(SIZES[size], batch, time, checkpointing=checkpointing, chunked_loss=tiles, **method)
        return {name: count / 2**30 for name, count in found.items()}

    def say(size: str, load: tuple[int, int, bool, bool]) -> str:
        totals = (f"{name}: {sum(parts(size, load, method).values()):.0f} GiB" for name, method in METHODS.items())
        return ", ".join(totals)

    def draw(size: str, load: tuple[int, int, bool, bool]) -> Figure:
        fig, ax = plt.subplots(figsize=(5, 2.9))
        for y, method in enumerate(METHODS.values()):
            left = 0.0
            for (name, n), color in zip(parts(size, load, method).items(), [BASE, FULL, CYCLE[4], LORA, CYCLE[3]]):
                ax.barh(y, n, left=left, color=color, label=name if y == 0 else "")
                left += n
            ax.text(left, y, f" {left:.0f}", va="center")
        ax.set(yticks=range(3), yticklabels=list(METHODS), xlabel="GiB for one step")
        ax.invert_yaxis()
        ax.margins(x=0.14)
        fig.legend(ncols=3, loc="outside upper left", columnspacing=1)
        return fig

    return knob(
        draw,
        size=list(SIZES),
        load=LOADS,
        start={"size": "8B", "load": "2 × 512"},
        labels={"size": "model", "load": "sequences × tokens"},
        alt=say,
        caption="What one training step needs, by what holds it.",
    )
