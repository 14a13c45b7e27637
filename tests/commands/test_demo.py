"""`python -m mnist_cnn.demo`: the page in a real browser, drawn on with the mouse."""

import os
import re
import socket
import threading
import time
from urllib.parse import urlparse

import numpy as np
import pytest
from conftest import start, wait_for

import mnist_cnn
from mnist_cnn import demo
from mnist_cnn.errors import UserError

PROXY = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="module")
def address(trained_base):
    """The address of the page, served by the command behind a proxy that does not answer."""
    process = start(
        "mnist_cnn.demo", "--workdir", trained_base, HTTP_PROXY=PROXY, http_proxy=PROXY, NO_PROXY=""
    )
    line = process.stdout.readline()
    yield re.search(r"http://\S+", line)[0]
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture
def open_page(browser, address):
    """Opens the page in a window of a given size, and records the addresses of all requests."""
    pages = []

    def open_page(width, height):
        page = browser.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": height})
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#canvas canvas")
        return page, requests

    yield open_page
    for page in pages:
        page.close()


def position(page, x, y):
    """The position in the window of a point given as fractions of the canvas."""
    box = page.locator("#canvas canvas").bounding_box()
    return box["x"] + box["width"] * x, box["y"] + box["height"] * y


def draw(page, points):
    """Draws through points without lifting the pen."""
    page.mouse.move(*position(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*position(page, *point), steps=4)


def stroke(page, points):
    draw(page, points)
    page.mouse.up()


def best(page):
    """The most probable digit, once the page shows one."""
    return page.locator("#bars h2").inner_text(timeout=20_000).strip()


def test_drawn_digits_are_recognized_and_nothing_leaves_the_machine(open_page):
    page, requests = open_page(1080, 620)
    draw(page, [(0.52, 0.2), (0.48, 0.78)])
    page.wait_for_timeout(250)  # the page sends five drawings a second
    page.mouse.move(*position(page, 0.48, 0.8))
    wait_for(lambda: best(page) == "1")  # the pen is still down
    page.mouse.up()
    page.wait_for_selector("#seen img")
    if target := os.environ.get("DEMO_SCREENSHOT"):  # makes docs/images/demo.png
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


def test_page_fits_the_width_of_a_phone(open_page):
    page, _ = open_page(320, 640)
    box = page.locator("#canvas canvas").bounding_box()
    assert 200 < box["width"] == pytest.approx(box["height"])
    assert box["x"] + box["width"] <= 320
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    stroke(page, [(0.3, 0.2), (0.7, 0.2), (0.4, 0.8)])
    wait_for(lambda: best(page) == "7")


@pytest.mark.slow
def test_notebook_page_connects_to_this_machine_only(trained_base, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.delenv("no_proxy", raising=False)
    targets = []
    connect = socket.socket.connect

    def recorded_connect(self, target):
        targets.append(target)
        return connect(self, target)

    monkeypatch.setattr(socket.socket, "connect", recorded_connect)
    _, local, public = demo.launch(mnist_cnn.load(trained_base), prevent_thread_lock=True)
    time.sleep(2)  # a version check would run in the background
    assert local.startswith("http://127.0.0.1") and public is None
    hosts = {target[0] for target in targets if isinstance(target, tuple)}
    assert hosts and hosts <= {"127.0.0.1", "::1", "localhost"}
    assert os.environ["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_page_is_served_behind_a_proxy_that_never_answers(scheme, trained_base):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        proxy = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        names = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
        process = start(
            "mnist_cnn.demo", "--workdir", trained_base, **dict.fromkeys(names, proxy), NO_PROXY=""
        )
        timer = threading.Timer(60, process.kill)  # a test that fails must end as well
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        process.terminate()
        _, err = process.communicate(timeout=60)
        assert line.startswith("draw at http://127.0.0.1:"), err


def test_socks_proxies_are_hidden_from_gradio_only(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5h://host:1")
    monkeypatch.setenv("http_proxy", PROXY)
    with demo._without_socks_proxy():
        assert "ALL_PROXY" not in os.environ and os.environ["http_proxy"] == PROXY
    assert os.environ["ALL_PROXY"] == "socks5h://host:1"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("no", name="orjson"), "needs the package orjson: pip install"),
        (ModuleNotFoundError("no", name="gradio.parts"), "a package cannot be imported (no)"),
        (ImportError("libz.so is too old"), "a package cannot be imported (libz.so is too old)"),
    ],
)
def test_only_a_missing_package_is_called_missing(error, said, monkeypatch):
    def failing(name, *arguments, original=__import__):
        if name == "gradio":
            raise error
        return original(name, *arguments)

    monkeypatch.setattr("builtins.__import__", failing)
    with pytest.raises(UserError) as caught:
        demo.launch(None)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_proxy_settings_of_the_user_are_kept(name, monkeypatch):
    for other in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(other, "")
    monkeypatch.setenv(name, "*")
    demo._bypass_proxy()
    assert os.environ[name] == "*"
    monkeypatch.setenv(name, "a.example,localhost")
    for _ in range(2):
        demo._bypass_proxy()
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "a.example,localhost,127.0.0.1"
