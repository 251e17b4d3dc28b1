"""Your own files as training data: plain text, CSV, JSONL of prompt and completion, JSONL of chats.

    text file                       read_text        list of documents    pack             blocks of one length
    .csv, .tsv or .jsonl            read_records     list of Records      encode_records   loss on the answers

`split` comes between reading and encoding. A file that cannot be used gives FileNotFoundError, or a ValueError that
names the file, the line and what was expected there; nothing is shortened or left out unless the caller asks for it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lora_lib.data.examples import Example, Item, Record
from lora_lib.gpt2.tokenizer import END_OF_TEXT, Tokenizer

ROLES = ("system", "user", "assistant", "tool")
# Keys that hold text for training in other formats. Beside "messages" they would be dropped without a word.
ELSEWHERE = ("prompt", "completion", "chosen", "rejected", "system", "functions", "images")
MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>")  # what programs write where a value is missing


def read_text(path: str | Path, separator: str | None = END_OF_TEXT) -> list[str]:
    r"""The documents of a UTF-8 text file, which `separator` divides; those that are blank are left out.

    `separator="\n\n"` makes each paragraph a document, None the whole file. The separator belongs to no document.
    """
    text = _read(path).replace("\r\n", "\n")
    documents = [part.strip("\n") for part in (text.split(separator) if separator else [text]) if part.strip()]
    return _not_empty(path, documents)


def read_records(
    path: str | Path, ask: Sequence[str] | None = None, answer: Sequence[str] | None = None, *,
    delimiter: str | None = None, missing: Collection[str] = MISSING,
) -> list[Record]:  # fmt: skip
    """The examples of a .csv, .tsv or .jsonl file.

    A .jsonl file has one JSON object a line. It holds chats if the first object has "messages", a list of
    {"role": "user", "content": "…"}. Roles are system, user, assistant and tool; the assistant's turns are learned, and
    the last turn is one. `tool_calls`, `reasoning_content` and a list of "tools" beside the messages are kept for a
    model with a chat template.

    Otherwise an example is a pair: the columns (in JSON: the keys) prompt and completion, or those of `ask` and
    `answer`. The text of one column is taken as it is. Several columns to ask with become a line each, "name: value";
    several to answer with become one JSON object, which `judge_answers` scores field by field. Other columns are
    ignored. A .csv is cut at commas and a .tsv at tabs, unless `delimiter` says otherwise. A field that is empty or one
    of `missing` is an error; with `missing=()` a word such as "None" is text like any other.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(f"{path}: its name must end in .jsonl (pairs or chats), .csv or .tsv, to say what it holds")
    if ask is None and answer is None:
        if ending == ".jsonl":
            _, first = next(_json_objects(path))
            if "messages" in first:
                return [_chat(value, where) for where, value in _json_objects(path)]
        ask, answer = ["prompt"], ["completion"]
    if not ask or not answer or set(ask) & set(answer):
        raise ValueError(f"name the columns to ask with and, apart from them, to answer with: got {ask} and {answer}")
    rows: Iterator[tuple[str, Mapping[str, Any]]] = _json_objects(path)
    if ending != ".jsonl":
        rows = _csv_fields(path, delimiter or ("," if ending == ".csv" else "\t"), [*ask, *answer], missing)
    return _not_empty(path, [_pair(fields, where, ask, answer) for where, fields in rows])


def read_object(path: str | Path) -> dict[str, Any]:
    """The one JSON object that a UTF-8 file is. Raises FileNotFoundError, or ValueError for anything else."""
    return _object(_read(path), str(path))


def _pair(fields: Mapping[str, Any], where: str, ask: Sequence[str], answer: Sequence[str]) -> Record:
    asked = {name: _text(fields, name, where) for name in ask}
    prompt = asked[ask[0]] if len(ask) == 1 else "\n".join(f"{name}: {text}" for name, text in asked.items())
    if len(answer) == 1:
        return Record((Example(prompt, _text(fields, answer[0], where)),), where)
    wanted = {n: (_text if isinstance(fields.get(n), str) else _field)(fields, n, where) for n in answer}
    return Record((Example(prompt, json.dumps(wanted, ensure_ascii=False)),), where)


def _csv_fields(
    path: str | Path, delimiter: str, columns: Sequence[str], missing: Collection[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row is, and its fields by column. Raises ValueError, with a line for each row that cannot be used."""
    rows = _csv_rows(path, delimiter)
    line, header = next(rows)
    header = [name.strip() for name in header]
    for name in columns:
        if header.count(name) != 1:
            raise ValueError(
                f"{path}, line {line}: expected one column {name!r}, found the columns {header}; "
                f"the first line names them, and the delimiter between them is {delimiter!r}"
            )
    bad = []
    for line, row in rows:
        where = f"{path}, line {line}"
        fields = dict(zip(header, row))
        gone = next((name for name in columns if fields.get(name, "").strip() in ("", *missing)), None)
        if len(row) != len(header):
            bad.append(
                f"{where}: expected {len(header)} fields, as in the header, found {len(row)}; "
                f'text that holds a {delimiter!r} stands between double quotes: "like this"'
            )
        elif gone and fields[gone].strip():
            bad.append(
                f"{where}: column {gone!r} is {fields[gone]!r}, which is how programs write a missing value; fill "
                "it in, or take the row out. If the word itself is meant, write another one, such as 'nothing'"
            )
        elif gone:
            bad.append(f"{where}: {gone!r} is empty: fill it in, or take it out")
        else:
            yield where, fields
    if bad:
        raise ValueError("\n".join(bad))


def _read(path: str | Path) -> str:
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}: the path is looked up from {Path.cwd()}")
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark that Excel and Notepad put first
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}; look at who may read it") from error
    try:
        text = content.decode("utf8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    if not text.strip():
        raise ValueError(f"{path} is empty: there is nothing to learn from it")
    return text


def _not_empty(path: str | Path, found: list[Item]) -> list[Item]:
    if not found:
        raise ValueError(f"{path} holds no example: there is nothing to learn from it")
    return found


def _csv_rows(path: str | Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line in which it begins (a field may contain line breaks)."""
    reader = csv.reader(io.StringIO(_read(path), newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "look at its double quotes"
            hint += ", or raise csv.field_size_limit for a longer text" if "larger than" in str(error) else ""
            raise ValueError(f"{path}, line {line}: not CSV ({error}); {hint}") from error
        if row:
            yield line, row


def _json_objects(path: str | Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Where each line is, and its object. Only a line feed ends a line: JSON may contain Unicode's other line ends."""
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        yield where, _object(line, where)


def _object(text: str, where: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); expected one whole object, {{…}}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected one JSON object, {{…}}, found {_kind(value)}")
    return value


def _chat(fields: Mapping[str, object], where: str) -> Record:
    messages = _check_messages(_field(fields, "messages", where), where)
    if beside := [name for name in ELSEWHERE if fields.get(name)]:
        raise ValueError(
            f"{where}: {beside[0]!r} stands beside 'messages', and only the messages would be learned; "
            "make a message of it, or take it out"
        )
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError(f"{where}: no turn of the assistant, and only its turns are learned; roles are {roles}")
    if roles[-1] != "assistant":
        raise ValueError(f"{where}: the last turn is the {roles[-1]}'s; it needs an answer, or has to go")
    tools = _tools(fields, where)
    plain = () if tools or any(map(_needs_template, messages)) else _exchanges(messages)
    return Record(tuple(plain), where, tuple(messages), tuple(tools))


def _tools(fields: Mapping[str, object], where: str) -> list[dict[str, Any]]:
    tools = fields.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{where}: 'tools' must be a list of objects, found {_kind(tools)}")
    return tools


def _needs_template(message: Mapping[str, Any]) -> bool:
    """Whether a message has parts that plain text has no place for."""
    return message["role"] == "tool" or bool(message.get("tool_calls") or message.get("reasoning_content"))


def _check_messages(messages: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list):
        raise ValueError(f"{where}: 'messages' must be a list, found {_kind(messages)}")
    for number, message in enumerate(messages, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise ValueError(f"{place}: expected an object with a role and a content, found {_kind(message)}")
        if message.get("weight", 1) not in (1, None):
            raise ValueError(
                f"{place}: its weight is {message['weight']!r}, and every turn of the assistant counts; "
                "take the weight out, or end the chat before this turn"
            )
        if _text(message, "role", place) not in ROLES:
            raise ValueError(f"{place}: unknown role {message['role']!r}: expected one of {', '.join(ROLES)}")
        if not (message.get("tool_calls") and message.get("content") in (None, "")):
            _text(message, "content", place)
        if message.get("reasoning_content") is not None:
            _text(message, "reasoning_content", place)
    return messages


def _field(fields: Mapping[str, object], name: str, where: str) -> object:
    if name not in fields:
        raise ValueError(f"{where}: no {name!r}, found {', '.join(map(repr, fields)) or 'nothing'}")
    return fields[name]


def _text(fields: Mapping[str, object], name: str, where: str) -> str:
    value = _field(fields, name, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name!r} must be a string, found {_kind(value)}")
    if not value.strip():
        raise ValueError(f"{where}: {name!r} is empty: fill it in, or take it out")
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # the tokenizer would write � for it
        raise ValueError(f"{where}: {name!r} holds half of a surrogate pair, such as \\ud83d, which is not a character")
    return value


def _kind(value: object) -> str:
    """JSON's word for the type of a value, or Python's for what JSON does not have."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def chat_prompt(messages: list[Any], tokenizer: Tokenizer, tools: Sequence[Any] = ()) -> list[int]:
    """The token ids after which the assistant speaks next, for `generate_text` with our GPT-2.

    `messages` are {"role": …, "content": …}, as in the file. The ids are those that training reads: each turn of the
    assistant ends with the token `<|endoftext|>`, which no typed text is encoded as (see `Tokenizer.encode`).
    The names of the roles are plain text, however: a user can type what looks like another's turn.

    Raises ValueError for a message that `read_records` would not take, and for tools and reasoning, which plain text
    has no place for.
    """
    _check_messages(messages, "chat_prompt")
    if tools or any(map(_needs_template, messages)):
        raise ValueError("our GPT-2's plain template has no place for tools or reasoning: take them out")
    done = _exchanges([*messages, {"role": "assistant", "content": ""}])
    ids = [[*tokenizer.encode(p), *tokenizer.encode(c), tokenizer.eot_token] for p, c in done[:-1]]
    return [*chain.from_iterable(ids), *tokenizer.encode(done[-1].prompt)]


def _exchanges(messages: Sequence[Mapping[str, Any]]) -> list[Example]:
    """The template: a line for each turn, headed by its role; the assistant's are the completions."""
    exchanges, prompt = [], ""
    for message in messages:
        if message["role"] == "assistant":
            exchanges.append(Example(prompt + "assistant:", " " + message["content"]))
            prompt = "\n"
        else:
            prompt += f"{message['role']}: {message['content']}\n"
    return exchanges
