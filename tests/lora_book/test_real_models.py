"""Which tokens are in the loss, as chapter 13 shows it."""

import pytest
from tiny_chat import letters_tokenizer

from lora_book.show.real_models import IN_THE_LOSS, learned_tokens

CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


@pytest.mark.parametrize(
    ("how", "said"),
    list(zip(IN_THE_LOSS, ["two<e>four<e>", "four<e>", None, None, "two<e>"])),
)
def test_what_is_learned(how, said):
    tokens, learned = learned_tokens(letters_tokenizer(), CHAT, how)
    shown = "".join(token for token, on in zip(tokens, learned) if on)
    whole = "".join(tokens)[len("<s>") :]  # the first is given
    if how == "every token":
        assert shown == whole
    elif how == "every token but padding":  # which is the end here, so no end is learned
        assert shown == whole.replace("<e>", "")
    else:
        assert shown == said
