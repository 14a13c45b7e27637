"""The page to draw on, as its user has it: drawn on with the mouse in a real browser."""

import os
import re
import socket
import subprocess
import sys
import time
from urllib.parse import urlparse

import numpy as np
import pytest
from conftest import ROOT, wait_for

import mnist_cnn


@pytest.fixture(scope="module")
def address(trained_base):
    """The command, started as a user would."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_cnn.demo", "--workdir", trained_base],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stdout.readline()
    yield re.search(r"http://\S+", line)[0]
    process.terminate()
    process.wait(timeout=60)


def stroke(page, points):
    """Draws through points, given as fractions of the canvas, with the mouse."""
    box = page.locator("#canvas canvas").bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def best(page):
    """The digit with the longest bar, once the page has one for it."""
    return page.locator("#bars h2").inner_text(timeout=20_000).strip()


def test_a_drawn_one_and_zero_are_told_and_nothing_leaves_the_machine(browser, address):
    page = browser.new_page()
    page.set_viewport_size({"width": 1080, "height": 620})
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#canvas canvas")
    stroke(page, [(0.52, 0.2), (0.48, 0.8)])
    wait_for(lambda: best(page) == "1")
    page.wait_for_selector("#seen img")
    if target := os.environ.get("DEMO_SCREENSHOT"):  # how docs/images/demo.png is made
        page.get_by_role("button", name="Clear").click()
        stroke(page, [(0.3, 0.3), (0.4, 0.22), (0.6, 0.25), (0.6, 0.4), (0.45, 0.5)])
        stroke(page, [(0.45, 0.5), (0.65, 0.58), (0.65, 0.75), (0.45, 0.82), (0.28, 0.75)])
        wait_for(lambda: best(page) == "3")
        page.wait_for_timeout(1000)
        page.screenshot(path=target)
    page.get_by_role("button", name="Clear").click()
    wait_for(lambda: page.locator("#bars h2").count() == 0)

    turn = np.linspace(0, 2 * np.pi, 30)
    stroke(page, [(0.5 + 0.2 * np.sin(t), 0.5 - 0.3 * np.cos(t)) for t in turn])
    wait_for(lambda: best(page) == "0")
    text = page.locator("#bars").inner_text()
    assert all(re.search(rf"^{digit}$", text, flags=re.MULTILINE) for digit in range(10))
    assert {urlparse(url).hostname for url in requests if urlparse(url).hostname} == {"127.0.0.1"}
    page.close()


def test_from_python_it_is_a_page_and_asks_nobody(trained_base, monkeypatch):
    """In a notebook `demo.launch(network)`; the server itself connects to this machine alone."""
    from mnist_cnn import demo

    asked = []
    connect = socket.socket.connect

    def watched(self, target):
        asked.append(target)
        return connect(self, target)

    monkeypatch.setattr(socket.socket, "connect", watched)
    _, local, public = demo.launch(mnist_cnn.load(trained_base), prevent_thread_lock=True)
    time.sleep(2)  # what asks for the newest version does it in the background
    assert local.startswith("http://127.0.0.1") and public is None
    hosts = {target[0] for target in asked if isinstance(target, tuple)}
    assert hosts and hosts <= {"127.0.0.1", "::1", "localhost"}
