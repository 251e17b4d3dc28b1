"""Examples as tokens: what is learned, what is cut, what is padded."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from lora_book.tasks import to_examples
from lora_lib.data import Example, batches, collate, encode_examples


def test_prompt_and_completion_are_cut_at_a_token_boundary_and_fit_the_context(splits, tokenizer):
    for e in to_examples(splits.test):
        assert tokenizer.encode(e.prompt) + tokenizer.encode(e.completion) == tokenizer.encode(e.prompt + e.completion)
    encoded = encode_examples(to_examples(splits.train), tokenizer, max_length=256)
    lengths = [len(ids) for ids, _ in encoded]
    assert len(lengths) == len(to_examples(splits.train)) and 40 < sum(lengths) / len(lengths) < 110


def test_targets_are_the_next_tokens_of_the_completion_only(tokenizer):
    example = Example("name[Lost Robin] =>", " Lost Robin is a pub.")
    ((ids, targets),) = encode_examples([example], tokenizer, 256)
    prompt, completion = tokenizer.encode(example.prompt), tokenizer.encode(example.completion)
    assert ids.tolist() == prompt + completion and ids.dtype == targets.dtype == torch.int64
    assert targets.tolist() == [-100] * (len(prompt) - 1) + completion + [tokenizer.eot_token]
    ((ids, targets),) = encode_examples([Example("", " A")], tokenizer, 256)  # nothing to mask
    assert (ids.tolist(), targets.tolist()) == (tokenizer.encode(" A"), [tokenizer.eot_token])


def test_too_long_or_empty_examples_are_named(tokenizer):
    examples = [Example("a", " b"), Example("name[Lost Robin] =>", " Lost Robin is a pub.")]
    prompt, completion = (len(tokenizer.encode(part)) for part in examples[1])
    encode_examples(examples, tokenizer, prompt + completion)
    with pytest.raises(ValueError, match=f"example 1 .* prompt of {prompt} and a completion of {completion} tokens"):
        encode_examples(examples, tokenizer, prompt + completion - 1)
    with pytest.raises(ValueError, match="example 0 has no completion"):
        encode_examples([Example("a", "")], tokenizer, 256)


def test_batches_are_padded_and_ordered_by_their_seed():
    encoded = [(torch.arange(n), torch.arange(n)) for n in range(1, 8)]
    ids, targets = collate([encoded[0], encoded[2]], pad_id=9)
    assert ids.tolist() == [[0, 9, 9], [0, 1, 2]] and targets.tolist() == [[0, -100, -100], [0, 1, 2]]

    def lengths(**settings):
        return [n for _, targets in batches(encoded, 3, 9, **settings) for n in (targets >= 0).sum(1).tolist()]

    assert lengths(shuffle=False) == list(range(1, 8))
    torch.manual_seed(1)
    first = lengths(seed=5)
    torch.manual_seed(2)  # the order is its own seed's affair
    assert first == lengths(seed=5) != lengths(seed=6) and sorted(first) == list(range(1, 8))


def test_splits_stay_as_they_were_drawn(splits):
    with pytest.raises(FrozenInstanceError):
        splits.test = splits.train
