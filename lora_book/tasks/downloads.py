"""Two real data sets: downloaded from their publishers once, checked, and kept in the user's cache folder.

`load_e2e` is the benchmark of the LoRA paper's GPT-2 experiments, in the types of `lora_book.tasks.restaurants`;
`load_sms_spam` is for classification. With the environment variable `LORA_DATA_DIR` set, files are read from that
folder instead (`e2e/*.csv`, `sms_spam/SMSSpamCollection`) and the network is not used. In both cases a file is used
only if its SHA-256 is that of the published file.
"""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lora_book.tasks.restaurants import Restaurant
from lora_lib.data.examples import Splits


class _Source(NamedTuple):
    url: str
    sha256: str  # of the file itself, unpacked
    member: str = ""  # its name inside the archive, where `url` is a zip


# The hashes of the published files say which version is meant; the addresses do not.
_E2E = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/"
_UCI = "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip"
_SOURCES = {
    "e2e/trainset.csv": _Source(
        _E2E + "trainset.csv", "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6"
    ),
    "e2e/devset.csv": _Source(_E2E + "devset.csv", "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9"),
    "e2e/testset_w_refs.csv": _Source(
        _E2E + "testset_w_refs.csv", "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"
    ),
    "sms_spam/SMSSpamCollection": _Source(
        _UCI, "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d", member="SMSSpamCollection"
    ),
}


class Message(NamedTuple):
    """A text message and its label, "ham" (wanted) or "spam"."""

    label: str
    text: str


def load_e2e() -> Splits[Restaurant]:
    """The E2E NLG Challenge data, v1.0.0: 4,862 / 547 / 630 meanings with 42,061 / 4,672 / 4,693 references.

    Crowd workers wrote the references. Some leave slots out or add some, so `slot_report` does not apply to them.
    About 12 MB from https://github.com/tuetschek/e2e-dataset. By Novikova, Dušek and Rieser (2017, arXiv:1706.09254),
    licensed CC BY-SA 4.0: what you publish of it, or make from it, must have that licence too.

    Raises ConnectionError when it cannot be downloaded, FileNotFoundError when `LORA_DATA_DIR` lacks a file, and
    ValueError when a file is not the published one.
    """
    return Splits(*(_read_e2e(f"e2e/{name}.csv") for name in ("trainset", "devset", "testset_w_refs")))


def load_sms_spam() -> list[Message]:
    """The SMS Spam Collection v.1: 5,574 messages in English, 4,827 ham and 747 spam, in the order of the file.

    About 0.2 MB from the UCI Machine Learning Repository (doi:10.24432/C5CC84), which lists it under CC BY 4.0. Its
    own readme leaves the copyright with Almeida and Gómez Hidalgo, lets it be used freely and without warranty, and
    asks for a citation: Almeida, Gómez Hidalgo and Yamakami, "Contributions to the study of SMS spam filtering: new
    collection and results", ACM DocEng 2011. The messages are real: some are rude, and some come twice.

    Raises as `load_e2e` does.
    """
    text = _fetch("sms_spam/SMSSpamCollection").read_text(encoding="utf8")
    return [Message(*line.split("\t", 1)) for line in text.rstrip("\n").split("\n")]


def balanced_splits(messages: Sequence[Message], seed: int = 0) -> Splits[Message]:
    """As many ham as spam, drawn and shuffled by `seed`, cut 70 % / 10 % / 20 %: 1,045 / 149 / 300 of the whole set.

    The sizes are those of Raschka's *Build a Large Language Model (From Scratch)*, chapter 6. The random generator is a
    different one, so the messages are not the same. Raises ValueError when one of the two labels has no message.
    """
    rng = random.Random(seed)
    by_label = [[m for m in messages if m.label == label] for label in ("ham", "spam")]
    count = min(map(len, by_label))
    if count == 0:
        raise ValueError(f"a balanced split needs ham and spam; got {len(by_label[0])} ham, {len(by_label[1])} spam")
    chosen = [message for group in by_label for message in rng.sample(group, count)]
    rng.shuffle(chosen)
    first, second = int(0.7 * len(chosen)), int(0.7 * len(chosen)) + int(0.1 * len(chosen))
    return Splits(chosen[:first], chosen[first:second], chosen[second:])


def _read_e2e(name: str) -> list[Restaurant]:
    """One split: its meanings in the order of the file, each with all its references."""
    references: dict[str, list[str]] = {}
    with _fetch(name).open(encoding="utf8", newline="") as file:
        for row in csv.DictReader(file):
            references.setdefault(row["mr"], []).append(row["ref"])
    return [Restaurant(dict(re.findall(r"(\w[\w ]*)\[(.*?)\]", mr)), tuple(refs)) for mr, refs in references.items()]


def _fetch(name: str) -> Path:
    """The path of a published file, from `LORA_DATA_DIR`, the cache, or its publisher, after its hash is checked."""
    import pooch  # imported here and below, because both are slow and the built-in data needs neither
    import requests

    source = _SOURCES[name]
    if local := os.environ.get("LORA_DATA_DIR"):
        return _check_local(Path(local).expanduser() / name, source)
    cache = Path(pooch.os_cache("lora_lib"))
    download: Any = pooch.HTTPDownloader(timeout=30, progressbar=True)
    if source.member:
        download = partial(_download_member, member=source.member)
    try:
        return Path(pooch.retrieve(source.url, source.sha256, fname=name, path=cache, downloader=download))
    except requests.RequestException as error:
        raise ConnectionError(
            f"could not download {name} from {source.url}: {error}\n"
            f"With a copy of it, set LORA_DATA_DIR to the folder that holds {name}. Without a network, "
            "lora_book.tasks.restaurants.restaurant_data() makes restaurants for the same task."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"what {source.url} sent is not the published {name}, and was thrown away: {error}\n"
            f"Try again later, or set LORA_DATA_DIR to a folder that holds {name}."
        ) from error


def _check_local(path: Path, source: _Source) -> Path:
    import pooch

    if not path.is_file():
        raise FileNotFoundError(f"LORA_DATA_DIR is set, but there is no {path}: put it there, or unset LORA_DATA_DIR")
    found = pooch.file_hash(str(path))
    if found != source.sha256:
        raise ValueError(f"{path} is not the published file: expected SHA-256 {source.sha256}, found {found}")
    return path


def _download_member(url: str, output_file: str, pooch_: object, *, member: str) -> None:
    """A downloader for pooch: download the zip at `url`, and unpack one file of it into `output_file`."""
    import pooch

    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive.zip"
        pooch.HTTPDownloader(timeout=30, progressbar=True)(url, str(archive), pooch_)
        try:
            with zipfile.ZipFile(archive) as packed, packed.open(member) as source, open(output_file, "wb") as target:
                shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, zlib.error, KeyError) as error:
            raise ValueError(f"it is not a complete zip archive with {member} in it ({error})") from error
