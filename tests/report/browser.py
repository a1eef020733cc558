"""Headless Chromium on a page from disk: its final DOM, its requests, its complaints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BINARY = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
BROWSER_ITSELF = "not an origin"
"""Chromium asks for its own updates whatever the flags; a page's request has an initiator."""
LOCAL = ("file:", "data:", "blob:", "about:", "chrome:", "chrome-extension:", "devtools:")


@dataclass(frozen=True, slots=True)
class Opened:
    """`requests`: addresses beyond the disk; `console`: messages of the page and of its CSP."""

    dom: str
    requests: list[str]
    console: list[str]


def open_page(path: Path) -> Opened:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        done = _chromium(
            [
                "--enable-logging=stderr",
                f"--log-net-log={log}",
                "--virtual-time-budget=15000",
                "--window-size=1200,900",
                "--dump-dom",
                path.resolve().as_uri(),
            ]
        )
        console = re.findall(r"CONSOLE[:(]\d+\)?\] (.*)", done.stderr)
        return Opened(dom=done.stdout, requests=_requests(log), console=console)


def screenshot(path: Path, png: Path, width: int, height: int, *, flags: Sequence[str] = ()) -> None:
    """Chromium's window is at least 500 pixels wide, so a narrower page is shown in a frame."""
    with tempfile.TemporaryDirectory() as folder:
        shown = path
        if width < 500:
            shown = Path(folder) / "frame.html"
            frame = f'<iframe src="{path.resolve().as_uri()}" width="{width}" height="{height}"'
            shown.write_text(f'<body style="margin:0">{frame} style="border:0">', encoding="utf-8")
        _chromium(
            [
                "--virtual-time-budget=15000",
                f"--window-size={width},{height}",
                f"--screenshot={png.resolve()}",
                *flags,
                shown.resolve().as_uri(),
            ]
        )


def _chromium(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    assert BINARY is not None, "Chromium is not installed"
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [BINARY, *FLAGS, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )


def _requests(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8")
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # Chromium was faster out of the door than its log
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    from_page = {str(request["url"]) for request in asked if request["initiator"] != BROWSER_ITSELF}
    return sorted(url for url in from_page if not url.startswith(LOCAL))
