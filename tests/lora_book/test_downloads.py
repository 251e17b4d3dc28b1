"""The loaders of E2E and SMS Spam, against a server on this machine, and against the real files where they lie."""

import csv
import hashlib
import io
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from lora_book.tasks import Message, Restaurant, balanced_splits, downloads, load_e2e, load_sms_spam

REAL = Path(__file__).parents[3] / "shared" / "data"
CSV = (
    "mr,ref\r\n"
    '"name[The Mill], customer rating[5 out of 5], near[Café Adriatic]","The Mill, by the café, is ""good""."\r\n'
    '"name[Cotto], area[riverside]",Cotto is by the river.\r\n'
    '"name[The Mill], customer rating[5 out of 5], near[Café Adriatic]",Five stars for The Mill.\r\n'
    "name[Clowns]," + "A clown laughs. " * 6_000 + "\r\n"
    "name[Clowns]," + "Another laughs. " * 6_000 + "\r\n"  # long enough to take several reads
).encode()
SMS = 'ham\tA "tab\t£5 here\nspam\tWIN now\n'.encode()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`, and can break off after `cut` bytes. Notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path.lstrip("/"))
        content = self.server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    return tmp_path / "cache" / "lora_lib"


@pytest.fixture
def server(cache, monkeypatch):
    """A publisher of small stand-ins for the four files, with their true hashes in the table."""
    server = Server()
    served = {"e2e/trainset.csv": CSV, "e2e/devset.csv": CSV[:-1], "e2e/testset_w_refs.csv": CSV[:-2]}
    server.files = {**served, "sms.zip": zipped(readme=b"about", SMSSpamCollection=SMS)}
    url = f"http://127.0.0.1:{server.server_port}/"
    sources = {name: downloads._Source(url + name, sha256(content)) for name, content in served.items()}
    sms = downloads._Source(url + "sms.zip", sha256(SMS), "SMSSpamCollection")
    monkeypatch.setattr(downloads, "_SOURCES", {**sources, "sms_spam/SMSSpamCollection": sms})
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def kept(cache: Path) -> set[str]:
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}


def test_e2e_is_downloaded_once_and_grouped_by_meaning(server, cache):
    splits = load_e2e()
    mill, cotto, _ = splits.train
    assert mill.meaning == {"name": "The Mill", "customer rating": "5 out of 5", "near": "Café Adriatic"}
    assert mill.mr == "name[The Mill], customer rating[5 out of 5], near[Café Adriatic]"
    assert mill.references == ('The Mill, by the café, is "good".', "Five stars for The Mill.")
    assert cotto == Restaurant({"name": "Cotto", "area": "riverside"}, ("Cotto is by the river.",))
    assert server.asked == ["e2e/trainset.csv", "e2e/devset.csv", "e2e/testset_w_refs.csv"]
    assert load_e2e() == splits and len(server.asked) == 3
    assert kept(cache) == {"e2e/trainset.csv", "e2e/devset.csv", "e2e/testset_w_refs.csv"}


def test_sms_is_unpacked_and_split_at_the_first_tab(server, cache):
    assert load_sms_spam() == [Message("ham", 'A "tab\t£5 here'), Message("spam", "WIN now")]
    assert load_sms_spam() and len(server.asked) == 1
    assert kept(cache) == {"sms_spam/SMSSpamCollection"}


@pytest.mark.parametrize("load", [load_e2e, load_sms_spam])
def test_a_broken_download_leaves_nothing_behind(server, cache, load):
    server.cut = 100
    with pytest.raises(ConnectionError, match="LORA_DATA_DIR"):
        load()
    assert kept(cache) == set()
    server.cut = None
    assert load() == load()


@pytest.mark.parametrize(
    ("file", "content", "load"),
    [
        ("e2e/trainset.csv", CSV.replace(b"river", b"rival"), load_e2e),
        ("sms.zip", zipped(SMSSpamCollection=SMS.replace(b"WIN", b"SIN")), load_sms_spam),
        ("sms.zip", zipped(readme=b"about"), load_sms_spam),
        ("sms.zip", b"<html>not found</html>", load_sms_spam),
    ],
)
def test_a_file_that_is_not_the_published_one_is_refused_and_not_kept(server, cache, file, content, load):
    server.files[file] = content
    with pytest.raises(ValueError, match=f"{file} sent is not the published"):
        load()
    assert kept(cache) == set()


def test_a_damaged_cached_file_is_fetched_again(server, cache):
    good = load_sms_spam()
    (cache / "sms_spam/SMSSpamCollection").write_bytes(SMS[:-5])
    assert load_sms_spam() == good and len(server.asked) == 2


def test_without_a_network_the_error_says_what_to_do(server):
    server.files.clear()
    with pytest.raises(ConnectionError, match="404"):
        load_e2e()
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"(?s)trainset\.csv.*LORA_DATA_DIR.*restaurant_data\(\)"):
        load_e2e()


def test_local_copies_are_read_and_checked_and_the_network_is_left_alone(server, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "mine"))
    file = tmp_path / "mine" / "sms_spam" / "SMSSpamCollection"
    with pytest.raises(FileNotFoundError, match="LORA_DATA_DIR is set, but there is no .*SMSSpamCollection"):
        load_sms_spam()
    file.parent.mkdir(parents=True)
    file.write_bytes(SMS)
    assert len(load_sms_spam()) == 2
    file.write_bytes(SMS + b"ham\tone more\n")
    with pytest.raises(ValueError, match="SMSSpamCollection is not the published file"):
        load_sms_spam()
    assert not server.asked and not cache.exists()


def test_balanced_splits():
    messages = [Message("ham", str(n)) for n in range(4827)] + [Message("spam", f"s{n}") for n in range(747)]
    splits = balanced_splits(messages, seed=1)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [1045, 149, 300]
    together = [*splits.train, *splits.validation, *splits.test]
    assert len(set(together)) == 1494 and Counter(m.label for m in together) == {"ham": 747, "spam": 747}
    assert 120 < Counter(m.label for m in splits.test)["spam"] < 180, "not shuffled"
    assert balanced_splits(messages, seed=1) == splits != balanced_splits(messages, seed=2)
    with pytest.raises(ValueError, match="got 4827 ham, 0 spam"):
        balanced_splits(messages[:4827])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the published files are not at {REAL}")
def test_the_real_files(monkeypatch):
    monkeypatch.setenv("LORA_DATA_DIR", str(REAL))
    splits = load_e2e()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [4862, 547, 630]
    lines = [sum(len(r.references) for r in s) for s in (splits.train, splits.validation, splits.test)]
    assert lines == [42_061, 4_672, 4_693]
    with (REAL / "e2e/testset_w_refs.csv").open(encoding="utf8", newline="") as file:
        assert {r.mr for r in splits.test} == {row["mr"] for row in csv.DictReader(file)}
    assert Counter(m.label for m in load_sms_spam()) == {"ham": 4827, "spam": 747}
