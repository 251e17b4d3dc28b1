"""A reader's own files: what is read from them, how it becomes tensors, and what is said about a bad one."""

import json
import re
from pathlib import Path

import pytest
import torch

from lora_lib import load_pretrained
from lora_lib.data import (
    IGNORE,
    MISSING,
    Example,
    Record,
    chat_prompt,
    encode_records,
    pack,
    read_records,
    read_text,
    split,
)
from lora_lib.gpt2 import generate_text
from lora_lib.training import evaluate

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four."},
]
PAIR = {"prompt": "Say hi:", "completion": " hi"}
READERS = {"a.txt": read_text, "a.csv": read_records, "a.jsonl": read_records}


@pytest.fixture
def write(tmp_path):
    """Write a file, given as text, bytes, or a list of values for the lines of a JSONL file; returns its path."""

    def write(content, name=None):
        name = name or ("file.jsonl" if isinstance(content, list) else "file.csv")
        if isinstance(content, list):
            content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in content)
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def fails(call, *parts):
    """The call raises ValueError, and its message holds all these parts in this order."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        call()


def learned(encoded, tokenizer):
    """The text under the loss."""
    _, targets = encoded
    return tokenizer.decode(targets[targets != IGNORE].tolist())


# --- reading --------------------------------------------------------------------------------------------------


def test_text_is_divided_into_documents(write):
    path = write("\ufeffOne\r\nline.\n<|endoftext|>\n\n<|endoftext|>Two,\n\nä.\n")
    assert read_text(path) == ["One\nline.", "Two,\n\nä."]
    assert read_text(path, "\n\n") == ["One\nline.\n<|endoftext|>", "<|endoftext|>Two,", "ä."]
    assert read_text(path, None) == ["One\nline.\n<|endoftext|>\n\n<|endoftext|>Two,\n\nä."]


def test_csv_with_quotes_line_breaks_and_other_columns(write):
    path = write('\ufeffid,completion,prompt\n1," a, ""b""\nc",P\n\n2, d,"Q,"\n', "pairs.csv")
    assert read_records(path) == [
        Record((Example("P", ' a, "b"\nc'),), f"{path}, line 2"),
        Record((Example("Q,", " d"),), f"{path}, line 5"),
    ]
    assert read_records(write("prompt;completion\nP, p;c\n"), delimiter=";")[0].exchanges == (Example("P, p", "c"),)


def test_lines_may_end_as_on_an_old_mac(write):
    path = write('prompt,completion\rP,"two\rlines"\r\rQ, c\r')
    assert read_records(path) == [
        Record((Example("P", "two\rlines"),), f"{path}, line 2"),
        Record((Example("Q", " c"),), f"{path}, line 5"),
    ]
    assert read_text(write("One\rline.\r")) == ["One\rline.\r"]


def test_the_kind_of_a_file_is_read_from_its_name_and_first_line(write):
    pair = (Example(**PAIR),)
    assert read_records(write("prompt,completion\nSay hi:, hi\n", "a.csv"))[0].exchanges == pair
    assert read_records(write("prompt\tcompletion\nSay hi:\t hi\n", "a.TSV"))[0].exchanges == pair
    assert read_records(write(["", PAIR, PAIR], "a.jsonl"))[1].exchanges == pair
    chats = read_records(write([{"id": 1, "messages": CHAT}], "b.jsonl"))
    assert [list(chat.messages) for chat in chats] == [CHAT]
    for name in ("a.json", "a.txt", "a"):
        fails(lambda name=name: read_records(write([PAIR], name)), name, "must end in .jsonl (pairs or chats), .csv or")
    fails(lambda: read_records(write([PAIR, {"messages": CHAT}], "a.jsonl")), "line 2: no 'prompt', found 'messages'")
    with pytest.raises(FileNotFoundError, match="there is no file none.jsonl"):
        read_records("none.jsonl")


def test_jsonl_pairs(write):
    path = write([PAIR | {"id": 7}, "", '{"prompt": "Two\u2028lines\u0085", "completion": "\\ud83d\\ude00"}\r', ""])
    assert read_records(path) == [
        Record((Example("Say hi:", " hi"),), f"{path}, line 1"),
        Record((Example("Two\u2028lines\u0085", "😀"),), f"{path}, line 3"),
    ]


def test_chat_becomes_exchanges(write):
    (record,) = read_records(write([{"messages": CHAT}]))
    assert record.exchanges == (
        Example("system: Be brief.\nuser: Hello!\nassistant:", " Hi."),
        Example("\nuser: What is 2 + 2?\nassistant:", " Four."),
    )


# --- bad files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_missing_empty_and_not_utf8(name, write, tmp_path):
    read = READERS[name]
    (tmp_path / "folder" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"there is no file .*{name}"):
        read(tmp_path / name)
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        read(tmp_path / "folder" / name)
    for nothing in (b"", b" \n\r\n", b"\xef\xbb\xbf"):
        fails(lambda nothing=nothing: read(write(nothing, name)), name, "is empty")
    fails(lambda: read(write("prompt,completion\ncaf\u00e9,x".encode("latin1"), name)), name, "line 2: not UTF-8")
    fails(lambda: read(write("\n{}caf\u00e9".encode("latin1"), name)), name, "line 2: not UTF-8")
    fails(lambda: read(write("{}".encode("utf-16"), name)), name, "line 1: not UTF-8")


def test_files_that_hold_no_example(write):
    fails(lambda: read_records(write("prompt,completion\n")), "holds no example")
    fails(lambda: read_text(write("<|endoftext|>\n")), "holds no example")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,answer\na,b", ("line 1", "one column 'completion'", "['prompt', 'answer']")),
        ("prompt;completion\na;b", ("line 1", "'prompt'", "['prompt;completion']", "delimiter")),
        ("prompt,completion,prompt\na,b,c", ("line 1", "one column 'prompt'")),
        ('prompt,completion\na,"b\nc"\nd', ("line 4", "expected 2 fields", "found 1")),
        ("prompt,completion\na,b\nc,d, and e", ("line 3", "expected 2 fields", "found 3", "double quotes")),
        ('prompt,completion\na,b\n"c,d\ne,f\n', ("line 3", "not CSV", "double quotes")),
        ('prompt,completion\na,b\n"c"d,e\n', ("line 3", "not CSV")),
        ("prompt,completion\na,b\nc, \n", ("line 3", "'completion' is empty")),
        ('prompt,completion\n"",b\n', ("line 2", "'prompt' is empty")),
        ("prompt,completion\nnan,b\n", ("line 2", "'prompt' is 'nan', which is how programs write a missing value")),
        ("prompt,completion\na,b\nc, None\n", ("line 3: column 'completion' is ' None'", "write another one, such as")),
    ],
)
def test_bad_csv(content, message, write):
    fails(lambda: read_records(write(content)), *message)


@pytest.mark.parametrize(("name", "content"), [("a.csv", "ask,kind,mood\na,x,y\nb,z, \n"),
                                               ("a.jsonl", [{"ask": "a", "kind": "x", "mood": "y"},
                                                            {"ask": "b", "kind": "z", "mood": ""}])])  # fmt: skip
def test_an_empty_label_among_several_is_refused(write, name, content):
    row = "line 3" if name == "a.csv" else "line 2"
    fails(lambda: read_records(write(content, name), ["ask"], ["kind", "mood"]), row, "'mood' is empty: fill it in")


def test_all_rows_that_cannot_be_used_are_said_at_once(write):
    path = write("prompt , completion\na,b\nc\n,d\ne,None\nf,g\n")
    with pytest.raises(
        ValueError, match="(?s)line 3: expected 2.*line 4: 'prompt' is empty.*line 5: column 'completion'"
    ):
        read_records(path)


def test_what_looks_like_a_missing_value_may_be_meant(write):
    path = write("prompt,completion,other\n" + "".join(f"a,{cell},nan\n" for cell in MISSING))
    assert [record.exchanges[0].completion for record in read_records(path, missing=())] == list(MISSING)
    fails(lambda: read_records(path, missing=("<NA>",)), f"line {len(MISSING) + 1}", "<NA>")
    assert read_records(write("prompt,completion,other\na,nancy,nan\n"))[0].exchanges[0].completion == "nancy"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'prompt': 'a'}", "not JSON"),
        ('{"prompt": "a", ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([PAIR], "expected one JSON object, {…}, found a list"),
        ("3", "found a number"),
        ("null", "found null"),
        ({"prompt": "a"}, "no 'completion', found 'prompt'"),
        ({}, "no 'prompt', found nothing"),
        (PAIR | {"completion": 3}, "'completion' must be a string, found a number"),
        (PAIR | {"completion": None}, "'completion' must be a string, found null"),
        (PAIR | {"prompt": True}, "'prompt' must be a string, found true"),
        (PAIR | {"completion": ""}, "'completion' is empty"),
        (PAIR | {"completion": " \n"}, "'completion' is empty"),
        (PAIR | {"completion": "\ud83d"}, "'completion' holds half of a surrogate pair"),
    ],
)
def test_bad_jsonl_names_its_line(line, message, write):
    line = json.dumps(line) if isinstance(line, list) else line
    fails(lambda: read_records(write([PAIR, "", line, PAIR])), "file.jsonl, line 3: ", message)


def turn(role="user", content="a"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"message": CHAT}, "no 'messages', found 'message'"),
        ({"messages": {"role": "user"}}, "'messages' must be a list, found an object"),
        ({"messages": ["hi"]}, "message 1: expected an object with a role and a content, found a string"),
        ({"messages": [*CHAT, {"role": "user"}]}, "message 6: no 'content', found 'role'"),
        ({"messages": [{"content": "a"}]}, "message 1: no 'role'"),
        ({"messages": [turn(role=1)]}, "message 1: 'role' must be a string, found a number"),
        ({"messages": [turn(content=["a"])]}, "message 1: 'content' must be a string, found a list"),
        ({"messages": [turn(), turn("assistant", "")]}, "message 2: 'content' is empty"),
        ({"messages": [turn("human")]}, "message 1: unknown role 'human': expected one of system, user, assistant"),
        ({"messages": [turn("system"), turn()]}, "no turn of the assistant"),
        ({"messages": []}, "no turn of the assistant"),
        ({"messages": [*CHAT, turn()]}, "the last turn is the user's"),
        (
            {"messages": [turn(), turn("assistant") | {"weight": 0}]},
            "message 2: its weight is 0, and every turn",
        ),
        ({"messages": [turn(), turn("assistant") | {"weight": 0.5}]}, "message 2: its weight is 0.5"),
        ({"messages": [turn(), turn("assistant", None) | {"tool_calls": []}]}, "message 2: 'content' must be a string"),
        (
            {"messages": [turn(), turn("assistant") | {"reasoning_content": 3}]},
            "message 2: 'reasoning_content'",
        ),
        ({"messages": CHAT, "tools": "search"}, "'tools' must be a list of objects, found a string"),
        (
            {"messages": CHAT, "prompt": "a"},
            "'prompt' stands beside 'messages', and only",
        ),
        ({"messages": CHAT, "system": "Be kind."}, "'system' stands beside 'messages'"),
    ],
)
def test_bad_chats_name_their_line(line, message, write):
    fails(lambda: read_records(write([{"messages": CHAT}, line])), "file.jsonl, line 2", message)


def test_a_chats_own_keys_that_change_nothing_are_let_through(write):
    plain = [turn() | {"name": "Ann"}, turn("assistant") | {"weight": 1, "tool_calls": [], "function_call": None}]
    (record,) = read_records(write([{"messages": plain, "id": 3}]))
    assert record.exchanges == (Example("user: a\nassistant:", " a"),)


def test_tools_and_reasoning_are_kept_and_refused_where_plain_text_has_no_place_for_them(tokenizer, write):
    tool = {"type": "function", "function": {"name": "clock"}}
    call = turn("assistant", None) | {"tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    called = [turn(), call, turn("tool", "noon"), turn("assistant", "It is noon.")]
    lines = [
        {"messages": called, "tools": [tool]},
        {"messages": [turn(), turn("assistant") | {"reasoning_content": "b"}]},
    ]
    for record, line in zip(read_records(write(lines)), lines, strict=True):
        assert list(record.messages) == line["messages"] and list(record.tools) == line.get("tools", [])
        assert record.exchanges == () and "user: a" in record.prompts
        fails(
            lambda r=record: encode_records([r], tokenizer, 256), record.where, "it has tools or reasoning", "our GPT-2"
        )
    fails(lambda: chat_prompt(called[:3], tokenizer), "no place for tools or reasoning")
    fails(lambda: chat_prompt([turn()], tokenizer, [tool]), "no place for tools or reasoning")


def test_a_file_that_may_not_be_read_says_so(write, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    path = write("prompt,completion\na,b\n", "a.csv")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(OSError, match=r"a\.csv cannot be read: Permission denied; look at who may read it"):
        read_records(path)


def test_a_record_of_a_million_blanks_is_refused_by_its_line(tokenizer, write):
    for many in (" " * 1_000_000, "a" + "\n" * 999_999 + "b"):
        records = read_records(write([PAIR, PAIR | {"prompt": "a" + many + "b"}]))
        fails(lambda r=records: encode_records(r, tokenizer, 256), "line 2: the text has ", "in a row", "remove some")
    assert len(tokenizer.encode("a" + " " * 100_000)) > 1


# --- splitting ------------------------------------------------------------------------------------------------


def test_split_keeps_what_is_alike_together():
    documents = [f"Document {i // 3}." if i % 3 else f"DOCUMENT  {i // 3}.\n" for i in range(300)]
    parts = split(documents, validation=0.2, test=0.1, seed=3)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [210, 60, 30]
    assert sorted([*parts.train, *parts.validation, *parts.test]) == sorted(documents)
    same = [{" ".join(text.lower().split()) for text in part} for part in (parts.train, parts.validation, parts.test)]
    assert not (same[0] & same[1] or same[0] & same[2] or same[1] & same[2])
    assert split(documents, validation=0.2, test=0.1, seed=3) == parts
    assert split(documents, validation=0.2, test=0.1, seed=4).test != parts.test


def test_split_keeps_one_prompts_answers_together():
    records = [Record((Example(f"Q{i % 10}", f" answer {i}"),), f"line {i}") for i in range(40)]
    parts = split(records)
    assert {r.prompts for r in parts.train}.isdisjoint(r.prompts for r in [*parts.validation, *parts.test])
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [32, 4, 4]


def test_split_shares():
    assert split(["a", "b", "c"]).train and split(["a", "b"], test=0).test == []
    fails(lambda: split(["a", "A ", "b"]), "3 items, 2 of them different, are too few")
    fails(lambda: split([]), "too few")
    fails(lambda: split("abcdefghijklmnop"), "expected a list of documents or records, got one text")
    fails(lambda: split(["a", "b", Example("c", "d")]), "item 2 is neither a text nor a Record, but of type Example")
    for validation, test in ((0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)):
        fails(lambda v=validation, t=test: split(["a"] * 9, validation=v, test=t), "shares of 0 or more")


# --- tokens ---------------------------------------------------------------------------------------------------


def test_pack_loses_no_token(tokenizer):
    documents = ["Once upon a time there was a fox.", "The <|endoftext|> end."]
    end, blocks = tokenizer.eot_token, pack(documents, tokenizer, block_length=7)
    first, second = map(tokenizer.encode, documents)
    assert torch.cat([ids for ids, _ in blocks]).tolist() == [end, *first, end, *second]
    assert torch.cat([targets for _, targets in blocks]).tolist() == [*first, end, *second, end]
    assert {len(ids) for ids, _ in blocks[:-1]} == {7} and 1 <= len(blocks[-1][0]) <= 7
    assert end not in second, "text that looks like the special token must stay text"


def test_pack_refuses(tokenizer):
    fails(lambda: pack("one text", tokenizer, 8), "expected a list of at least one document")
    fails(lambda: pack([], tokenizer, 8), "expected a list of at least one document")
    fails(lambda: pack(["a"], tokenizer, 0), "block_length must be 1 or more")


def test_only_the_assistants_turns_are_learned(tokenizer, write):
    records = read_records(write([{"messages": CHAT}])) + read_records(write([PAIR]))
    chat, pair = encode_records(records, tokenizer, 256)
    assert learned(chat, tokenizer) == " Hi.<|endoftext|> Four.<|endoftext|>"
    assert learned(pair, tokenizer) == " hi<|endoftext|>"
    ids, targets = chat
    assert ids.shape == targets.shape and ids.dtype == targets.dtype == torch.int64
    wanted = targets != IGNORE
    assert torch.equal(targets[:-1][wanted[:-1]], ids[1:][wanted[:-1]]), "a target is the token that follows"
    assert tokenizer.decode(ids.tolist()) == (
        "system: Be brief.\nuser: Hello!\nassistant: Hi.<|endoftext|>\nuser: What is 2 + 2?\nassistant: Four."
    )


def test_generation_reads_what_training_read(tokenizer, write):
    (ids, _), *_ = encode_records(read_records(write([{"messages": CHAT}])), tokenizer, 256)
    for turns in (2, 4):
        prompt = chat_prompt(CHAT[:turns], tokenizer)
        assert prompt == ids[: len(prompt)].tolist()
        assert ids[len(prompt) :].tolist()[:1] == tokenizer.encode(" " + CHAT[turns]["content"])[:1]
    fails(lambda: chat_prompt([turn("human")], tokenizer), "message 1: unknown role 'human'")
    fails(lambda: chat_prompt("hello", tokenizer), "must be a list, found a string")


def test_generate_text_takes_token_ids(tokenizer):
    model, _ = load_pretrained("gpt2-mini")
    texts = ["Once upon a time", "The fox said"]
    expected = generate_text(model, tokenizer, texts, max_new_tokens=5)
    assert generate_text(model, tokenizer, [tokenizer.encode(texts[0]), texts[1]], max_new_tokens=5) == expected


def test_too_long_is_refused_or_dropped_but_never_cut(tokenizer, write):
    records = read_records(write([PAIR, PAIR | {"completion": " word" * 50}, PAIR]))
    fits, limit = len(encode_records(records[:1], tokenizer, 256)[0][0]), 20
    fails(lambda: encode_records(records, tokenizer, limit), "line 2: ", "tokens do not fit max_length 20")
    with pytest.warns(UserWarning, match="left out 1 of 3 records: .*line 2: "):
        kept = encode_records(records, tokenizer, limit, too_long="drop")
    assert [len(ids) for ids, _ in kept] == [fits, fits]
    assert len(encode_records(records[:1], tokenizer, fits)) == 1, "a record of exactly max_length fits"
    fails(lambda: encode_records(records[:1], tokenizer, fits - 1), "line 1: ")
    fails(lambda: encode_records(records[1:2], tokenizer, limit, too_long="drop"), "no record is left of 1; ", "line 2")
    fails(lambda: encode_records([], tokenizer, limit), "no record is left of 0")
    fails(lambda: encode_records(records, tokenizer, limit, too_long="cut"), "'raise' or 'drop', got 'cut'")


def test_what_is_made_can_be_trained_on(tokenizer, write):
    model, _ = load_pretrained("gpt2-mini")
    encoded = encode_records(read_records(write([{"messages": CHAT}])), tokenizer, 256)
    assert 0 < evaluate(model, encoded + pack(["Once upon a time."], tokenizer, 256), bf16=False) < 12


def test_columns_of_any_name_become_questions_and_json_answers(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("id,review,category,mood\n1,The box broke.,quality,bad\n", encoding="utf8")
    (record,) = read_records(path, ["review"], ["category", "mood"])
    assert record.exchanges == (Example("The box broke.", '{"category": "quality", "mood": "bad"}'),)
    (record,) = read_records(path, ["id", "review"], ["mood"])
    assert record.exchanges == (Example("id: 1\nreview: The box broke.", "bad"),)


def test_columns_of_jsonl_keep_their_types(tmp_path):
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"review": "The box broke.", "stars": 2, "refund": null, "place": "Köln"}\n', encoding="utf8")
    (record,) = read_records(path, ["review"], ["stars", "refund", "place"])
    assert record.exchanges[0].completion == '{"stars": 2, "refund": null, "place": "Köln"}'


@pytest.mark.parametrize(
    ("name", "text", "ask", "answer", "message"),
    [
        ("a.csv", "review,kind\nx,y\n", ["text"], ["kind"], "line 1: expected one column 'text', found the columns"),
        ("a.csv", "review,kind\nx,nan\n", ["review"], ["kind"], "line 2: column 'kind' is 'nan'"),
        ("a.csv", "review,kind\n,y\n", ["review"], ["kind"], "line 2: 'review' is empty"),
        ("a.jsonl", '{"review": "x"}\n', ["review"], ["kind"], "line 1: no 'kind', found 'review'"),
        ("a.csv", "review,kind\nx,y\n", ["review"], [], "name the columns"),
        ("a.csv", "review,kind\nx,y\n", ["review"], ["review"], "apart from them"),
        ("a.xlsx", "x", ["review"], ["kind"], "must end in .jsonl"),
    ],
)
def test_columns_that_cannot_be_read_are_named(tmp_path, name, text, ask, answer, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf8")
    with pytest.raises(ValueError, match=message):
        read_records(path, ask, answer)
    assert path.read_text(encoding="utf8") == text
