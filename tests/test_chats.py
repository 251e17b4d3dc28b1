"""Chats for models of Hugging Face's, with a template as SmolLM2's and a tokenizer of single letters."""

import pytest
import torch
from tiny_chat import TEMPLATE, letters_tokenizer, tiny_llama

from lora_lib.data import IGNORE, encode_chat, prompt_ids, write_answers

CHAT = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]


@pytest.fixture
def tokenizer():
    return letters_tokenizer()


def test_the_answer_and_its_end_are_learned_and_nothing_else(tokenizer):
    ids, targets = encode_chat(CHAT, tokenizer)
    whole = tokenizer.convert_tokens_to_ids(["<s>", *"user:ab", "<e>", "<s>", *"assistant:cd", "<e>"])
    assert ids.tolist() == whole[:-1]
    assert targets.tolist() == [IGNORE] * (len(whole) - 4) + whole[-3:]
    assert prompt_ids(CHAT[:1], tokenizer) == whole[:-3]


def test_only_the_last_answer_is_learned(tokenizer):
    _, targets = encode_chat([*CHAT, *CHAT], tokenizer)
    assert (targets != IGNORE).sum() == 3


@pytest.mark.parametrize("chat", [[], CHAT[:1], [CHAT[0], {"role": "assistant", "content": ""}]])
def test_a_chat_without_an_answer_is_refused(tokenizer, chat):
    with pytest.raises(ValueError, match="ends with the assistant's answer"):
        encode_chat(chat, tokenizer)


def test_a_template_that_changes_the_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{% if add_generation_prompt %}x{% endif %}" + TEMPLATE
    with pytest.raises(ValueError, match="writes a prompt in another way once it is answered"):
        encode_chat(CHAT, tokenizer)


def test_answers_come_in_order_and_padding_changes_none(tokenizer):
    model = tiny_llama().train()
    chats = [[{"role": "user", "content": text}] for text in ("abcdefgh", "b", "hello you", "zz")]
    together = write_answers(model, tokenizer, chats, 6, batch_size=4)
    assert together == [write_answers(model, tokenizer, [chat], 6)[0] for chat in chats]
    assert model.training and len(set(together)) > 1


def test_an_answer_ends_at_the_end_of_the_turn(tokenizer):
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.zeros(1))

        def generate(self, input_ids, attention_mask, **settings):
            assert settings["eos_token_id"] == 1 and attention_mask.shape == input_ids.shape
            more = torch.tensor([[4, 5, 1, 9]]).repeat(len(input_ids), 1)
            return torch.cat([input_ids, more], 1)

    assert [a.replace(" ", "") for a in write_answers(Fixed(), tokenizer, [CHAT[:1]], 4)] == ["cd"]
