"""Chats and records for models of Hugging Face's: a template as SmolLM2's, and a tokenizer of single letters."""

import json

import pytest
import torch
from tiny_chat import TEMPLATE, letters_tokenizer, tiny_llama

from lora_lib import get_peft_model, load_pretrained
from lora_lib.data import (
    IGNORE,
    Example,
    Record,
    ask_records,
    encode_chat,
    encode_records,
    prompt_ids,
    read_records,
    record_chat,
    write_answers,
)
from lora_lib.gpt2 import generate_text

CHAT = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
TWO = [*CHAT, {"role": "user", "content": "e"}, {"role": "assistant", "content": "fgh"}]
TOOL = [{"type": "function", "function": {"name": "clock"}}]


@pytest.fixture
def tokenizer():
    return letters_tokenizer()


def learned(encoded, tokenizer):
    _, targets = encoded
    return "".join(tokenizer.convert_ids_to_tokens(targets[targets != IGNORE].tolist()))


# --- what is learned ------------------------------------------------------------------------------------------


def test_the_answer_and_its_end_are_learned_and_nothing_else(tokenizer):
    ids, targets = encode_chat(CHAT, tokenizer)
    whole = tokenizer.convert_tokens_to_ids(["<s>", *"user:ab", "<e>", "<s>", *"assistant:cd", "<e>"])
    assert ids.tolist() == whole[:-1]
    assert targets.tolist() == [IGNORE] * (len(whole) - 4) + whole[-3:]
    assert prompt_ids(CHAT[:1], tokenizer) == whole[:-3]


def test_every_answer_is_learned_or_only_the_last(tokenizer):
    ids, targets = encode_chat(TWO, tokenizer)
    assert learned((ids, targets), tokenizer) == "cd<e>fgh<e>"
    wanted = targets[:-1] != IGNORE
    assert torch.equal(targets[:-1][wanted], ids[1:][wanted]), "a target is the token that follows"
    assert learned(encode_chat(TWO, tokenizer, answers="last"), tokenizer) == "fgh<e>"
    with pytest.raises(ValueError, match="answers must be 'all' or 'last', got 'first'"):
        encode_chat(TWO, tokenizer, answers="first")


@pytest.mark.parametrize("chat", [[], CHAT[:1], [*TWO, CHAT[0]]])
def test_a_chat_that_does_not_end_with_an_answer_is_refused(tokenizer, chat):
    with pytest.raises(ValueError, match="ends with the assistant's answer"):
        encode_chat(chat, tokenizer)


@pytest.mark.parametrize("place", [1, 3])
def test_an_empty_answer_is_refused(tokenizer, place):
    chat = [dict(message) for message in TWO]
    chat[place]["content"] = ""
    with pytest.raises(ValueError, match="an answer of the assistant is empty"):
        encode_chat(chat, tokenizer)


def test_a_template_that_changes_the_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{% if add_generation_prompt %}x{% endif %}" + TEMPLATE
    with pytest.raises(ValueError, match="in another way once the chat goes on"):
        encode_chat(CHAT, tokenizer)


def test_a_template_that_shortens_earlier_answers_takes_the_last_alone(tokenizer):
    """As templates of models that reason: what they thought is taken out of all answers but the last."""
    said = "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}"
    tokenizer.chat_template = TEMPLATE.replace("{{ m['content'] }}", said)
    with pytest.raises(ValueError, match="With answers='last', or one record for each answer"):
        encode_chat(TWO, tokenizer)
    assert learned(encode_chat(TWO, tokenizer, answers="last"), tokenizer) == "fgh<e>"


def test_a_model_that_can_think_learns_and_is_asked_without(tokenizer):
    """As with Qwen3.8, whose template begins with another line unless it is told not to think."""
    thinks = "{% if enable_thinking is not defined or enable_thinking %}think{% endif %}"
    tokenizer.chat_template = thinks + TEMPLATE
    ids, targets = encode_chat(CHAT, tokenizer)
    asked = prompt_ids(CHAT[:1], tokenizer)
    assert asked[0] == tokenizer.bos_token_id  # no "think"
    assert ids[: len(asked)].tolist() == asked and learned((ids, targets), tokenizer) == "cd<e>"
    thoughts = [CHAT[0], CHAT[1] | {"reasoning_content": "xy"}]
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{{ m.reasoning_content }}{{ m['content'] }}")  # fmt: skip
    assert tokenizer.decode(encode_chat(thoughts, tokenizer)[0]).replace(" ", "").startswith("think")


def test_a_chat_that_is_too_long_is_refused(tokenizer):
    length = len(encode_chat(CHAT, tokenizer)[0])
    assert len(encode_chat(CHAT, tokenizer, length)[0]) == length
    with pytest.raises(ValueError, match=rf"^{length} tokens do not fit max_length {length - 1}; shorten"):
        encode_chat(CHAT, tokenizer, length - 1)
    tokenizer.model_max_length = length - 1  # without a limit of the caller's, it is the model's
    with pytest.raises(ValueError, match=f"do not fit max_length {length - 1}"):
        encode_chat(CHAT, tokenizer)


def test_tools_and_reasoning_are_written_by_the_template_or_refused(tokenizer):
    with_tools = "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}"
    reason = "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    thinking = [CHAT[0], CHAT[1] | {"reasoning_content": "xy"}]
    calling = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "clock"}}]}]
    for chat, tools, name in ((CHAT, TOOL, "tools"), (thinking, (), "reasoning_content"), (calling, (), "tool_calls")):
        with pytest.raises(ValueError, match=f"writes nothing of .?{name}"):
            encode_chat(chat, tokenizer, tools=tools)
    tokenizer.chat_template = with_tools + TEMPLATE.replace("{{ m['content'] }}", reason + "{{ m['content'] }}")
    ids, _ = encode_chat(CHAT, tokenizer, tools=TOOL)
    assert tokenizer.decode(ids).replace(" ", "").startswith("clock<s>user:ab")
    assert prompt_ids(CHAT[:1], tokenizer, TOOL) == ids[: len(prompt_ids(CHAT[:1], tokenizer, TOOL))].tolist()
    assert "xy" in learned(encode_chat(thinking, tokenizer), tokenizer)


def test_what_the_template_refuses_is_said(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="this model's chat template does not take the chat: roles must alternate"):
        encode_chat(CHAT, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="this tokenizer has no chat template: use a chat model, or records of prompt"):
        encode_chat(CHAT, tokenizer)


# --- records --------------------------------------------------------------------------------------------------


def test_records_go_through_the_template(tokenizer, tmp_path):
    pair = Record((Example("ab", "cd"),), "pairs.csv, line 2")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": TWO}))
    (chat,) = read_records(tmp_path / "chats.jsonl")
    first, second = encode_records([pair, chat], tokenizer, 256)
    for ours, wanted in ((first, encode_chat(CHAT, tokenizer)), (second, encode_chat(TWO, tokenizer))):
        assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    assert record_chat(pair) == CHAT
    asked = [{"role": "system", "content": "be kind"}, *CHAT]
    ((ids, _),) = encode_records([pair], tokenizer, 256, system="be kind")
    assert torch.equal(ids, encode_chat(asked, tokenizer)[0])
    prompts, wanted = ask_records([pair, chat], tokenizer)
    assert wanted == ["cd", "fgh"] and prompts == [prompt_ids(CHAT[:1], tokenizer), prompt_ids(TWO[:3], tokenizer)]
    calls = [{"function": {"name": "clock"}}]
    call = Record((), "a", ({"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}))
    assert json.loads(ask_records([call], tokenizer)[1][0]) == calls
    with pytest.raises(ValueError, match="pairs.csv, line 2: .* tokens do not fit max_length 5; shorten it"):
        encode_records([pair], tokenizer, 5)
    system = Record((), "chats.jsonl, line 1", tuple(asked))
    with pytest.raises(ValueError, match="chats.jsonl, line 1: this chat has a system turn already"):
        encode_records([system], tokenizer, 256, system="be kind")


def test_a_tokenizer_without_a_template_reads_pairs_as_they_stand(tokenizer):
    tokenizer.chat_template = None
    pair = Record((Example("ab", "cd"),), "pairs.csv, line 2")
    ((ids, targets),) = encode_records([pair], tokenizer, 256)
    letters = tokenizer.convert_tokens_to_ids([*"abcd", "<e>"])
    assert ids.tolist() == letters[:-1] and targets.tolist() == [IGNORE, *letters[2:]]
    assert ask_records([pair], tokenizer) == ([letters[:2]], ["cd"])
    with pytest.raises(ValueError, match="pairs.csv, line 2: this tokenizer has no chat template, so there is no"):
        encode_records([pair], tokenizer, 256, system="be kind")
    with pytest.raises(ValueError, match="a.jsonl, line 1: this tokenizer has no chat template: use a chat model"):
        encode_records([Record((), "a.jsonl, line 1", tuple(CHAT))], tokenizer, 256)


def test_our_gpt2_is_asked_with_what_it_read_in_training(tokenizer, tmp_path):
    ours = load_pretrained("gpt2-mini")[1]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": TWO}))
    records = [Record((Example("a =>", " b"),), "x"), *read_records(tmp_path / "chats.jsonl")]
    prompts, wanted = ask_records(records, ours)
    assert wanted == [" b", "fgh"]
    for prompt, (ids, _) in zip(prompts, encode_records(records, ours, 256), strict=True):
        assert prompt == ids[: len(prompt)].tolist()
    with pytest.raises(ValueError, match="x: this tokenizer has no chat template, so there is no place for `system`"):
        encode_records(records, ours, 256, system="be kind")


# --- answers --------------------------------------------------------------------------------------------------


def test_answers_come_in_order_and_padding_changes_none(tokenizer):
    model = tiny_llama().train()
    chats = [[{"role": "user", "content": text}] for text in ("abcdefgh", "b", "hello you", "zz")]
    together = write_answers(model, tokenizer, chats, 6, batch_size=4)
    assert together == [write_answers(model, tokenizer, [chat], 6)[0] for chat in chats]
    assert model.training and len(set(together)) > 1
    assert together == generate_text(get_peft_model(model, "all-linear", 2), tokenizer,
                                     [prompt_ids(chat, tokenizer) for chat in chats], 6)  # fmt: skip


def test_answers_are_sampled_by_their_seed_and_leave_the_random_state(tokenizer):
    model, chats = tiny_llama(), [CHAT[:1]] * 8
    greedy = write_answers(model, tokenizer, chats, 6)
    state = torch.get_rng_state()
    first, again, other = (write_answers(model, tokenizer, chats, 6, temperature=2.0, seed=s) for s in (1, 1, 2))
    assert first == again != other and len(set(greedy)) == 1 < len(set(first))
    assert torch.equal(torch.get_rng_state(), state)
    assert write_answers(model, tokenizer, chats, 6, temperature=2.0, top_k=1) == greedy


class Fixed(torch.nn.Module):
    """Writes the same tokens after every prompt, and notes how it was asked."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.config = self.generation_config = type("Config", (), {"eos_token_id": [1, 9]})

    def generate(self, input_ids, attention_mask, **settings):
        self.asked = settings
        assert attention_mask.shape == input_ids.shape
        return torch.cat([input_ids, torch.tensor([[4, 5, 9, 6]]).repeat(len(input_ids), 1)], 1)


def test_an_answer_ends_at_each_token_that_ends_a_turn(tokenizer):
    model = Fixed()
    assert [a.replace(" ", "") for a in write_answers(model, tokenizer, [CHAT[:1]], 4)] == ["cd"]
    assert model.asked["eos_token_id"] == [1, 9] and model.asked["do_sample"] is False


def test_what_cannot_be_generated_is_refused(tokenizer):
    model = tiny_llama()
    for change, message in (
        ({"temperature": -1}, "temperature must be a number from 0"), ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"batch_size": 0}, "batch_size must be"), ({"top_k": 0}, "top_k must be"), ({"seed": -1}, "seed must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            generate_text(model, tokenizer, ["ab"], **change)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate_text(model, tokenizer, ["ab", ""])
    with pytest.raises(ValueError, match="a prompt of 2 tokens and 3000 new ones do not fit this model's context"):
        generate_text(model, tokenizer, ["ab"], 3000)
    with pytest.raises(TypeError, match=r"got a tuple: load_pretrained returns a pair, \(model, tokenizer\)"):
        generate_text(load_pretrained("gpt2-mini"), tokenizer, ["ab"])
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="a token that ends a text"):
        generate_text(model, tokenizer, ["ab"])
