"""A real browser for tests of the pages, and a cable to it that can be cut."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60
"""Seconds until something counts as not happening; a busy machine is slow."""


@contextmanager
def chromium(downloads: Path) -> Iterator[Any]:
    """Headless Chromium; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or browser is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    several = "profile.default_content_setting_values.automatic_downloads"
    prefs = {"download.default_directory": str(downloads), several: 1}
    options.add_experimental_option("prefs", prefs)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        chrome.set_script_timeout(PATIENCE)
        yield Page(chrome)


class Page:
    """What a person does with a page: look, click, type, wait."""

    def __init__(self, chrome: Any) -> None:
        self.chrome = chrome

    def open(self, address: str, width: int = 1280, height: int = 860) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.chrome.get(address)
        self.problems()  # those of the page before

    def all(self, selector: str) -> list[Any]:
        return self.chrome.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.chrome.find_element("css selector", selector)

    def js(self, expression: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(f"return {expression}", *arguments)

    def text(self, selector: str) -> str:
        return self.js("document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def until(self, expression: str) -> None:
        """Waits until a JavaScript expression holds."""
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.chrome, PATIENCE, poll_frequency=0.1)
        wait.until(lambda _: self.js(f"Boolean({expression})"), f"never: {expression}")

    def until_shown(self, selector: str, count: int = 1) -> None:
        self.until(f"document.querySelectorAll({selector!r}).length >= {count}")

    def keys(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.chrome).send_keys(*keys).perform()

    def problems(self) -> list[str]:
        """What the browser complained about since the last time, but for failed requests."""
        lines = self.chrome.get_log("browser")
        return [line["message"] for line in lines if line["source"] != "network"]

    def places(self) -> set[str]:
        """Where everything on the page came from."""
        names = self.js("performance.getEntriesByType('resource').map((entry) => entry.name)")
        return {name.split("/")[2] for name in names if name.startswith("http")}


class Cable:
    """A port that passes everything on to another one, until it is cut."""

    def __init__(self, place: tuple[str, int]) -> None:
        self.place, self.whole = place, True
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def cut(self) -> None:
        """Breaks all connections, and new ones as soon as they come."""
        self.whole = False
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(self.place)
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
