"""Firefox, driven over WebDriver BiDi, which it speaks itself: no driver program is needed beside it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

NAMES = (
    "firefox", "firefox-esr", "/Applications/Firefox.app/Contents/MacOS/firefox",
    r"C:\Program Files\Mozilla Firefox\firefox.exe",
)  # fmt: skip
# A proxy where nobody listens cuts the network. Downloads go to a folder without a question.
SETTINGS = {
    "network.proxy.type": 1, "network.proxy.http": "127.0.0.1", "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1", "network.proxy.ssl_port": 9, "browser.download.folderList": 2,
    "browser.download.useDownloadDir": True, "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False, "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False, "datareporting.healthreport.uploadEnabled": False,
}  # fmt: skip


def find() -> str | None:
    """The path of a Firefox on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One open page: what it logged as an error, what it asked of other machines, and scripts run in it."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address + "/session", suppress_origin=True, timeout=180)
        self.numbers = itertools.count()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.command("session.new", capabilities={})
        self.context = self.command("browsingContext.getTree")["contexts"][0]["context"]
        self.command("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])

    def command(self, method: str, **params: Any) -> Any:
        """A command's result, once it is there; what happens meanwhile is written down."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.errors.append(message["params"]["text"])
            if message.get("method") == "network.beforeRequestSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                if message["type"] == "error":
                    raise RuntimeError(message["message"])
                return message["result"]

    def goto(self, url: str) -> None:
        self.command("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def hide(self) -> None:
        """Open a tab in front of it."""
        self.command("browsingContext.create", type="tab")

    def evaluate(self, script: str) -> Any:
        """The value of an expression, which may be a promise; what it gives travels as JSON."""
        target = {"context": self.context}
        script = f"(async () => JSON.stringify(await ({script})) ?? null)()"
        found = self.command("script.evaluate", expression=script, target=target, awaitPromise=True)
        if found["type"] == "exception":
            raise RuntimeError(found["exceptionDetails"]["text"])
        value = found["result"].get("value")
        return None if value is None else json.loads(value)


@contextmanager
def open_tab(path: str, folder: Path) -> Iterator[Tab]:
    """A new Firefox with a new profile; downloads go to `folder`/downloads."""
    profile, downloads = folder / "profile", folder / "downloads"
    profile.mkdir()
    downloads.mkdir()
    settings = {**SETTINGS, "browser.download.dir": str(downloads)}
    lines = [f'user_pref("{name}", {json.dumps(value)});\n' for name, value in settings.items()]
    (profile / "user.js").write_text("".join(lines), encoding="utf8")
    command = [path, "--headless", "--no-remote", "--remote-debugging-port", "0", "--profile", str(profile)]
    said = folder / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        address = None
        while address is None and process.poll() is None:
            time.sleep(0.1)
            address = re.search(r"BiDi listening on (ws://\S+)", said.read_text(errors="replace"))
        if address is None:
            raise RuntimeError(f"{path} ended before it could be driven: {said.read_text(errors='replace')[-500:]}")
        yield Tab(address[1])
    finally:
        process.terminate()
        process.wait(timeout=20)
