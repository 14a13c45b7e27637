"""`python -m mnist_cnn.demo`: the page in a real browser, drawn on with the mouse."""

import base64
import os
import re
import signal
import socket
import threading
import time
from urllib.parse import urlparse
from urllib.request import ProxyHandler, build_opener

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import finish, run, start, wait_for
from flax import linen as nn
from PIL import Image

import mnist_cnn
from mnist_cnn import demo
from mnist_cnn.analysis.answers import answers
from mnist_cnn.analysis.network import Network
from mnist_cnn.data.spec import DataSpec
from mnist_cnn.errors import ConfigError, UserError
from mnist_cnn.models.ensemble import Ensemble

PROXY = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="module")
def addresses(trained_base):
    """The page's addresses, served by the command behind a proxy that does not answer.

    The first is for this machine, the second, if it has a network, for other devices.
    """
    process = start(
        "mnist_cnn.demo", "--workdir", trained_base, "--host=0.0.0.0",
        HTTP_PROXY=PROXY, http_proxy=PROXY, NO_PROXY="", no_proxy="",
    )  # fmt: skip
    expected = len(demo._urls("0.0.0.0", 1))
    lines = [process.stdout.readline() for _ in range(expected)]
    yield [re.search(r"http://\S+", line)[0] for line in lines]
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def address(addresses):
    return addresses[0]


class OfItsInk(nn.Module):
    """Takes every character for a 4: surely with little ink, less surely with more, then not."""

    @nn.compact
    def __call__(self, images):
        ink = images.reshape(images.shape[0], -1).sum(-1, keepdims=True)
        slope = self.param("slope", nn.initializers.zeros, (10,))
        return slope * (124 - ink) - 30 * (np.arange(10) != 4)


@pytest.fixture(scope="module")
def none_address():
    """The address of the page of a network that tells what is no digit, served in this process."""
    config = {"loss": "cross_entropy_or_none", "eval_batch_size": 64}
    variables = {"params": {"slope": np.full(10, 0.05, np.float32)}}
    network = Network(config, variables, OfItsInk(), step=0, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
            patch.setenv(name, "")  # restored at the end
        _, address, _ = demo.launch(network, prevent_thread_lock=True)
        yield address
        import gradio

        gradio.close_all(verbose=False)


class Reddest(nn.Module):
    """Takes images with more red than blue for the first of two classes, surely."""

    @nn.compact
    def __call__(self, images):
        scale = self.param("scale", nn.initializers.ones, ())
        red = scale * (images[..., 0] - images[..., 2]).sum((1, 2))
        return jnp.stack([red, -red], axis=-1)


@pytest.mark.slow
def test_pictures_of_other_data_are_chosen_and_answered_by_the_names_of_their_classes(
    browser, tmp_path
):
    spec = DataSpec((16, 20, 3), ("<b>red", "blue"))
    config = {"loss": "cross_entropy", "eval_batch_size": 64}
    variables = {"params": {"scale": np.ones((), np.float32)}}
    network = Network(config, variables, Reddest(), step=0, seed=0, spec=spec)
    Image.new("RGB", (60, 90), (200, 20, 10)).save(tmp_path / "red.png")
    _, address, _ = demo.launch(network, prevent_thread_lock=True)
    page = browser.new_page()
    try:
        page.goto(address)
        page.locator("#picture input[type=file]").set_input_files(tmp_path / "red.png")
        page.wait_for_function("document.querySelector('#bars').innerText.includes('100%')")
        assert page.locator("#bars h2").inner_text().strip() == "<b>red"
    finally:
        page.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page in a window of a given size, and records the addresses of all requests."""
    pages = []

    def open_page(width, height, address=address):
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


def note(page):
    return page.locator("#note").inner_text().replace("\N{NO-BREAK SPACE}", " ").strip()


@pytest.mark.slow
def test_the_page_of_an_ensemble_says_how_many_members_differ(open_page):
    slopes = np.full((3, 10), 0.01, np.float32)
    slopes[2, 7] = 5  # this member takes all with little ink for a 7
    config = {"loss": "cross_entropy", "eval_batch_size": 64}
    network = Network(config, {"params": {"slope": slopes}}, Ensemble(OfItsInk()), 0, (1, 2, 3))
    _, address, _ = demo.launch(network, prevent_thread_lock=True)
    page, _ = open_page(320, 720, address)
    stroke(page, [(0.52, 0.2), (0.48, 0.78)])
    wait_for(lambda: best(page) == "4")
    wait_for(lambda: note(page) == "Unsure. 1 of 3 members differs.")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    if target := os.environ.get("DEMO_ENSEMBLE_SCREENSHOT"):
        page.screenshot(path=target, full_page=True)


def draw_701(page):
    """A 7, a 0 and a 1 beside each other."""
    stroke(page, [(0.06, 0.3), (0.3, 0.3), (0.15, 0.7)])
    turn = np.linspace(0, 2 * np.pi, 20)
    stroke(page, [(0.56 + 0.11 * np.sin(t), 0.5 - 0.2 * np.cos(t)) for t in turn])
    stroke(page, [(0.87, 0.3), (0.86, 0.7)])


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


@pytest.mark.slow
def test_several_digits_are_shown_as_predict_reads_them(open_page, trained_base, tmp_path):
    page, _ = open_page(1080, 620)
    draw_701(page)
    wait_for(lambda: best(page) == "701")
    drawing = page.evaluate("document.querySelector('#canvas canvas').toDataURL()")
    (path := tmp_path / "drawing.png").write_bytes(base64.b64decode(drawing.partition(",")[2]))
    (answer,) = answers(mnist_cnn.load(trained_base), [str(path)])
    assert answer.text == "701"
    each = ", ".join(f"{one.digit} ({one.probability:.0%})" for one in answer.digits)
    wait_for(lambda: note(page) == ("" if answer.sure else "Unsure. ") + each)
    assert f"{answer.probability:.0%}" in page.locator("#bars").inner_text()
    size = "(image => [image.naturalWidth, image.naturalHeight])"
    width, height = page.locator("#seen img").evaluate(size)
    assert width == 3 * height  # the three beside each other


@pytest.mark.parametrize(
    "width", [pytest.param(width, marks=pytest.mark.slow) for width in (1080, 375, 320)]
)
def test_sure_and_unsure_answers_and_no_digit_differ(width, open_page, none_address):
    page, _ = open_page(width, 640, none_address)
    stroke(page, [(0.5, 0.2), (0.5, 0.8)])
    wait_for(lambda: best(page) == "4" and note(page) == "")
    page.get_by_role("button", name="Clear").click()
    turn = np.linspace(0, 2 * np.pi, 30)
    stroke(page, [(0.5 + 0.2 * np.sin(t), 0.5 - 0.3 * np.cos(t)) for t in turn])
    wait_for(lambda: note(page) == "Unsure.")
    assert best(page) == "4"
    if target := os.environ.get("DEMO_SHEETS"):
        page.screenshot(path=f"{target}/unsure_{width}.png", full_page=True)
    page.get_by_role("button", name="Clear").click()
    rows = [(side, y) for y in np.arange(0.2, 0.8, 0.1) for side in (0.2, 0.8)]
    stroke(page, rows)
    wait_for(lambda: note(page) == "This is no digit.")
    assert page.locator("#bars h2").count() == 0
    page.wait_for_selector("#seen img")
    page.get_by_role("button", name="Clear").click()
    wait_for(lambda: note(page) == "")


@pytest.mark.slow
def test_a_long_number_fits_the_width_of_a_phone(open_page, none_address):
    page, _ = open_page(320, 640, none_address)
    for y in (0.08, 0.4, 0.72):
        for x in np.linspace(0.06, 0.94, 7):
            page.mouse.move(*position(page, x, y))
            page.mouse.down()
            page.mouse.move(*position(page, x, y + 0.2))
            page.mouse.up()
    wait_for(lambda: best(page) == "4" * 21)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for place in ("#bars h2", "#bars", "#note"):
        box = page.locator(place).evaluate("(e => [e.scrollWidth, e.clientWidth])")
        assert box[0] <= box[1], place
    if target := os.environ.get("DEMO_SHEETS"):
        page.screenshot(path=f"{target}/long.png", full_page=True)


def test_second_finger_draws_nothing(open_page):
    page, _ = open_page(375, 700)
    touch = page.context.new_cdp_session(page)

    def touches(kind, *points):
        places = [position(page, *point) for point in points]
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touches("touchStart", (0.3, 0.2))
    touches("touchMove", (0.7, 0.2))
    touches("touchStart", (0.7, 0.2), (0.1, 0.9))
    touches("touchMove", (0.4, 0.8), (0.15, 0.9))
    touches("touchEnd")
    wait_for(lambda: best(page) == "7")
    page.mouse.move(*position(page, 0.9, 0.9))  # the pen is up
    dark = """(canvas => { const pixels = canvas.getContext('2d').getImageData(0, 0, 336, 336).data;
        return [[34, 302], [302, 302]].map(([x, y]) => pixels[4 * (336 * y + x)]); })"""
    assert page.locator("#canvas canvas").evaluate(dark) == [255, 255]


def test_page_is_open_to_other_devices_in_the_network(addresses, open_page):
    if len(addresses) == 1:
        pytest.skip("this machine has no network")
    assert urlparse(addresses[0]).hostname == "127.0.0.1" != urlparse(addresses[1]).hostname
    page, _ = open_page(320, 640, addresses[1])
    stroke(page, [(0.3, 0.2), (0.7, 0.2), (0.4, 0.8)])
    wait_for(lambda: best(page) == "7")
    page.wait_for_selector("#seen img")


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


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def taken():
    """A port that another program listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def free_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def test_page_is_for_this_machine_only_by_default(no_variables):
    address, port = demo._find_address(None, None)
    assert address == "127.0.0.1" and 7860 <= port < 7960
    assert demo._urls(address, port) == [f"http://127.0.0.1:{port}/"]
    assert demo._urls("::1", 7860) == ["http://[::1]:7860/"]


def test_flags_take_precedence_over_gradios_variables(no_variables):
    first, second = free_port(), free_port()
    no_variables.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    no_variables.setenv("GRADIO_SERVER_PORT", str(first))
    assert demo._find_address(None, None) == ("0.0.0.0", first)
    assert demo._find_address("localhost", second) == ("127.0.0.1", second)
    no_variables.setenv("GRADIO_SERVER_NAME", "no such host")
    no_variables.setenv("GRADIO_SERVER_PORT", "none")
    assert demo._find_address("127.0.0.1", second) == ("127.0.0.1", second)


def test_first_free_port_is_used(no_variables, taken):
    no_variables.setattr(demo, "_PORTS", [taken, free := free_port()])
    assert demo._find_address(None, None) == ("127.0.0.1", free)
    no_variables.setattr(demo, "_PORTS", [taken, taken])
    with pytest.raises(UserError, match=f"^ports {taken} to {taken} are taken"):
        demo._find_address(None, None)


@pytest.mark.parametrize(
    ("host", "name", "port", "said"),
    [
        ("203.0.113.7", "", "", "--host 203.0.113.7: this machine cannot listen there"),
        ("http://x:80", "", "", "--host http://x:80: there is no such host; give 127.0.0.1"),
        (None, "a b", "", "GRADIO_SERVER_NAME=a b: there is no such host; give 127.0.0.1"),
        (None, "", "70000", "GRADIO_SERVER_PORT: got '70000', expected a port, 1 to 65535"),
        (None, "", "seven", "GRADIO_SERVER_PORT: got 'seven', expected a port, 1 to 65535"),
    ],
)
def test_address_that_cannot_be_used_is_named(host, name, port, said, no_variables):
    no_variables.setenv("GRADIO_SERVER_NAME", name)
    no_variables.setenv("GRADIO_SERVER_PORT", port)
    with pytest.raises(ConfigError if port else UserError) as caught:
        demo._find_address(host, None)
    assert str(caught.value).startswith(said)


def test_taken_port_is_named_before_the_network_is_read(taken):
    _, err = run("mnist_cnn.demo", "--workdir=nowhere", f"--port={taken}", status=1)
    expected = f"error: port {taken} is taken by another program; end it, or give another with"
    assert err == f"{expected} --port\n"


@pytest.mark.slow
def test_page_needs_no_run_and_ends_quietly(tmp_path):
    variables = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(free_port())}
    process = start("mnist_cnn.demo", **variables)
    timer = threading.Timer(120, process.kill)  # a test that fails must end as well
    timer.start()
    line = process.stdout.readline()
    address = f"http://127.0.0.1:{variables['GRADIO_SERVER_PORT']}/"
    assert line.startswith(f"draw at {address} (step "), process.stderr.read()
    assert b"Draw a digit" in build_opener(ProxyHandler({})).open(address).read()
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("", "")
    timer.cancel()


@pytest.mark.slow
def test_interrupted_start_ends_quietly(trained_base):
    process = start("mnist_cnn.demo", "--workdir", trained_base)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130) and err == ""
