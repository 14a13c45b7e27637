"""`export --format html`: in a real browser at a phone's size it answers as `predict` does."""

import base64
import io
import json
import pathlib
import random
import re
import threading
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, config_of, read_idx, run, wait_for
from flax import linen as nn
from pictures import number, picture
from PIL import Image, ImageDraw
from test_onnx import CLASSES, MODULES, SHAPE, apply, module, random_images, random_variables

import mnist_cnn
from benchmarks.render import photo
from mnist_cnn.analysis.answers import Digit, _best_reading, answers
from mnist_cnn.analysis.export_formats import FORMATS
from mnist_cnn.analysis.network import Network
from mnist_cnn.analysis.page import build
from mnist_cnn.analysis.to_onnx.converter import convert
from mnist_cnn.data.spec import MNIST, NAMED, DataSpec
from mnist_cnn.digits.fitted import fitted
from mnist_cnn.digits.lines import Found, find_digits
from mnist_cnn.digits.pictures import decode
from mnist_cnn.errors import PictureError, UserError
from mnist_cnn.models.apply import init_variables
from mnist_cnn.models.ensemble import Ensemble
from mnist_cnn.training import drawings
from mnist_cnn.training.state import create_state

HANDWRITING = ROOT / "benchmarks" / "handwriting_pictures"
TOLERANCE = 0.001  # of a probability: the browser's JPEG decoder is another one


@pytest.fixture(scope="module")
def digits():
    return mnist_cnn.load("digits")


@pytest.fixture(scope="module")
def digits_page(digits, tmp_path_factory):
    """The file of the packaged network's page."""
    path = tmp_path_factory.mktemp("page") / "digits.html"
    path.write_bytes(FORMATS["html"](digits))
    return path


@pytest.fixture
def open_page(browser):
    """Opens a file in a window of a phone's size without a network; no request may leave it."""
    pages, requests, problems = [], [], []

    def open_page(path, width=390, height=760, script=None):
        page = browser.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": height})
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        if script:
            page.add_init_script(script)
        page.goto(path.as_uri())
        return page

    browser.set_offline(True)
    yield open_page
    left = {url for url in requests if not url.startswith(("file:", "blob:", "data:"))}
    assert not left and not problems
    for page in pages:
        page.close()
    browser.set_offline(False)


def said(page):
    """The page's answer as a line of `predict`, and the first probability in it."""
    text, rest = (page.locator(name).text_content() for name in ("#answer", "#said"))
    line = f"{text}  {rest}" if rest else text
    return line, float(match[1]) if (match := re.search(r"([\d.]+)%", rest)) else None


def same_answer(page, answer, tolerance=TOLERANCE):
    """Asserts that the page says what `predict` says, with the same probabilities."""
    line, probability = said(page)
    if answer.error:
        assert line.endswith(answer.error)
        return
    without = partial(re.sub, r"[\d.]+%", "%")
    assert without(line) == without(answer.said()), (line, answer.said())
    assert abs(probability / 100 - answer.probability) <= tolerance, (line, answer.said())
    assert page.locator("#unsure").is_visible() != answer.sure


def upload(page, path):
    page.locator("#clear").click()
    empty = page.locator("#answer").text_content()
    page.set_input_files("#file", path)
    wait_for(lambda: page.locator("#answer").text_content() != empty)
    wait_until_idle(page)


def wait_until_idle(page):
    wait_for(lambda: page.locator("#status").get_attribute("aria-busy") == "false")


def touch(page, strokes):
    """Draws strokes, of points given as fractions of the canvas, with a finger."""
    session = page.context.new_cdp_session(page)
    box = page.locator("#drawing").bounding_box()
    for points in strokes:
        places = [
            {"x": box["x"] + box["width"] * x, "y": box["y"] + box["height"] * y} for x, y in points
        ]
        for index, place in enumerate(places):
            kind = "touchMove" if index else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()


def drawn(page, folder):
    """The drawing as a file."""
    url = page.evaluate("document.querySelector('#drawing').toDataURL()")
    path = folder / "drawing.png"
    path.write_bytes(base64.b64decode(url.partition(",")[2]))
    return path


def predicted(network, path):
    (answer,) = answers(network, [str(path)])
    return answer


SEVEN = [[(0.3, 0.2), (0.5, 0.2), (0.7, 0.2), (0.55, 0.5), (0.4, 0.8)]]


def test_a_drawing_and_a_photo_get_the_answers_of_predict(open_page, digits_page, digits, tmp_path):
    page = open_page(digits_page)
    touch(page, SEVEN)
    wait_until_idle(page)
    same_answer(page, predicted(digits, drawn(page, tmp_path)))
    assert page.locator("#bars li").count() == 10
    upload(page, ROOT / "docs" / "nine.png")
    same_answer(page, predicted(digits, ROOT / "docs" / "nine.png"))
    assert said(page)[0].startswith("9  ")
    assert len(page.workers) == 1  # the pen does not wait for the network


def hundred(folder):
    """70 files: handwriting of others, rendered photos, photos in colour that are rotated."""
    paths = sorted(HANDWRITING.glob("*/*.[pj][np]g"))
    random.Random(35).shuffle(paths)
    several = [path for path in paths if path.parent.name in ("several", "nondigits")][:10]
    paths = [*paths[:26], *several]
    test = read_idx("t10k-images-idx3-ubyte")[..., 0]
    for index in range(18):
        (path := folder / f"photo{index}.png").touch()
        image = photo(test[index], np.random.default_rng(index)).image
        if index % 2:
            path = path.with_suffix(".jpg")
        image.save(path, quality=90)
        paths.append(path)
    for index in range(16):
        content, suffix = picture(test[100 + index], index)
        (path := folder / f"picture{index}{suffix}").write_bytes(content)
        paths.append(path)
    assert len(paths) == 70
    return paths


@pytest.mark.slow
def test_a_hundred_pictures_get_the_answers_of_predict(open_page, digits_page, digits, tmp_path):
    page = open_page(digits_page)
    paths = hundred(tmp_path)
    for path, answer in zip(paths, answers(digits, map(str, paths)), strict=True):
        upload(page, path)
        same_answer(page, answer)
    table, rng = drawings.TABLE, np.random.default_rng(0)
    glyphs = [*range(len(drawings.LABELS))][:: len(drawings.LABELS) // 24][:24]
    glyphs += [*range(len(drawings.LABELS), len(table.points), 8)][: 30 - len(glyphs)]
    assert len(glyphs) == 30
    for glyph in glyphs:
        line = table.weights[glyph] @ (table.points[glyph] + rng.normal(0, 0.3, (1, 2)))
        line = 0.15 + line * rng.uniform(0.05, 0.08)
        strokes, pen = [[line[0]]], table.pen[glyph]
        for point, down in zip(line[1:], pen, strict=True):
            strokes[-1].append(point) if down else strokes.append([point])
        page.locator("#clear").click()
        touch(page, [stroke for stroke in strokes if len(stroke) > 1])
        wait_until_idle(page)
        same_answer(page, predicted(digits, drawn(page, tmp_path)))


@pytest.mark.slow
def test_large_photos_get_the_answers_of_predict(open_page, digits_page, digits, tmp_path):
    """Pillow reduces such JPEG files while it decodes them, the page afterwards."""
    page = open_page(digits_page)
    test = read_idx("t10k-images-idx3-ubyte")[..., 0]
    for index, size in enumerate([(1280, 1700), (2592, 1944), (4032, 3024), (1300, 5200)]):
        image, _ = number(test[20 * index : 20 * index + 6], [3, 3])
        image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = (1, 6, 3, 8)[index]
        image = image.rotate((0, 90, 180, 270)[index], expand=True)
        image.save(path := tmp_path / f"{index}.jpg", quality=85, exif=exif)
        upload(page, path)
        answer = predicted(digits, path)
        assert len(answer.digits) > 3
        same_answer(page, answer, 0.005)


def test_a_picture_may_be_pasted_and_dropped(open_page, digits_page, digits):
    page = open_page(digits_page)
    nine = ROOT / "docs" / "nine.png"
    text = base64.b64encode(nine.read_bytes()).decode()
    events = {"ClipboardEvent('paste'": "clipboardData", "DragEvent('drop'": "dataTransfer"}
    for event, field in events.items():
        page.locator("#clear").click()
        assert said(page)[0] == "Nothing is drawn yet."
        page.evaluate(
            f"""text => {{
                const files = new DataTransfer();
                const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
                files.items.add(new File([bytes], "nine.png", {{type: "image/png"}}));
                const options = {{bubbles: true, cancelable: true, {field}: files}};
                document.body.dispatchEvent(new {event}, options));
            }}""", text,
        )  # fmt: skip
        wait_for(lambda: said(page)[0].startswith("9  "))
        same_answer(page, predicted(digits, nine))


def in_browser(page, program, image, *more):
    """What a function of the page's scripts returns for the pixels of a picture."""
    if image.mode[0] in "IF":
        raise AssertionError("a picture of 8 bits is expected")
    data = base64.b64encode(image.convert("RGBA").tobytes()).decode()
    picture = [image.width, image.height, image.info.get("scale", 1.0), data]
    return page.evaluate(
        """([[width, height, scale, text], more]) => {
            const data = Uint8ClampedArray.from(atob(text), c => c.charCodeAt(0));
            try { return (PROGRAM)({width, height, scale, data}, ...more); }
            catch (error) {
              if (error instanceof PictureError) return error.message;
              throw error;
            }
        }""".replace("PROGRAM", program), [picture, more],
    )  # fmt: skip


def various(count):
    """Pictures with what the preparation treats: photos, numbers, transparency, blur, noise."""
    test = read_idx("t10k-images-idx3-ubyte")[..., 0]
    for index in range(count):
        rng = np.random.default_rng(index)
        yield photo(test[index], rng).image
        yield decode(io.BytesIO(picture(test[index], index)[0]))
        lengths = [int(length) for length in rng.integers(1, 7, index % 4 + 1)]
        image, _ = number(test[40 * index : 40 * index + sum(lengths)], lengths)
        scale = (0.4, 1, 5)[index % 3]
        yield image.resize((round(image.width * scale), round(image.height * scale)))
        size = int(rng.integers(30, 700))
        ink = Image.new("RGBA", (size, size), (*map(int, rng.integers(0, 256, 3)), 0))
        opacity = Image.fromarray(test[index]).resize((size, size))
        ink.putalpha(opacity.point(lambda value: value * 200 // 255))
        yield ink
        shape = rng.integers(1, 60, 2)
        yield Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8))
        thin = Image.new("L", (size, 2 * size), "white")
        ImageDraw.Draw(thin).line((size // 2, size // 2, size // 2 + 9, size), "black", 1)
        yield thin
        broken = np.array(number(test[index : index + 4], [2, 2])[0])
        for bar in range(5):  # beside the digits: pieces that may be of one
            left = broken.shape[1] // 2 + 14 * bar + int(rng.integers(5))
            broken[30 + int(rng.integers(9)) : 90, left : left + 7] = 0
        yield Image.fromarray(broken)
        yield Image.fromarray((215 - broken // 4 * rng.random(broken.shape)).astype(np.uint8))
    train = read_idx("train-images-idx3-ubyte")[..., 0]
    yield photo(train[56863], np.random.default_rng([1, 1863])).image  # compared with paper again
    # On lines that go on beyond the digit, beside crossings of lines, in the edge of a shadow.
    for index in (1311, 1725, 2479, 682, 1706):
        yield photo(train[index], np.random.default_rng([2, index])).image
    paths = sorted(HANDWRITING.glob("*/*.[pj][np]g"))
    for path in random.Random(count).sample(paths, 15 * count):
        yield decode(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize("count", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_the_preparation_gives_the_same_pixels_as_in_python(count, open_page, digits_page):
    page = open_page(digits_page)
    program = (
        "(image, single) => findDigits(image, single).map(x => [[...x.form], x.box, x.pieces])"
    )
    kinds = set()
    for index, image in enumerate(various(count)):
        single = index % 5 == 4
        try:
            found = find_digits(image, single)
        except PictureError as error:
            assert in_browser(page, program, image, single) == str(error)
            kinds.add(str(error))
            continue
        expected = [[one.form.ravel().tolist(), list(one.box), list(one.pieces)] for one in found]
        assert in_browser(page, program, image, single) == expected, index
        kinds.add(min(len(found), 2))
    assert len(kinds) >= 3


def test_the_pieces_of_ink_are_put_together_as_in_python(open_page, digits_page):
    page, rng = open_page(digits_page), np.random.default_rng(0)
    for _ in range(200):
        count, candidates, rows = int(rng.integers(1, 7)), [], []
        for first, last in np.argwhere(np.triu(rng.random((count, count + 1)) < 0.8, 1)).tolist():
            probabilities = rng.dirichlet(np.full(8, 0.5))
            digit = Digit((first, last, 0, 0), probabilities) if rng.random() < 0.6 else None
            form = np.zeros((28, 28), np.uint8)
            candidates.append((Found(form, (0, 0, 1, 1), (first, last)), digit))
            rows.append([[first, last], None if digit is None else 0, probabilities.max()])
        expected = [list(one.pieces) for one, _ in _best_reading(candidates)]
        program = """rows => bestReading(rows.map(([pieces, digit, probability]) =>
            ({pieces, digit, probability}))).map(one => one.pieces)"""
        assert page.evaluate(program, rows) == expected


@pytest.mark.parametrize("shape", [(12, 10, 1), (16, 16, 3), (28, 28, 1)])
def test_other_pictures_are_scaled_to_the_same_pixels(shape, open_page, digits_page):
    page = open_page(digits_page)
    rng = np.random.default_rng(0)
    sizes = {"RGB": (40, 31), "L": (7, 90), "RGBA": (33, 20)}
    for mode, size in [*sizes.items(), ("RGB", shape[1::-1])]:
        pixels = rng.integers(0, 256, (size[1], size[0], len(mode))).astype(np.uint8)
        image = Image.fromarray(pixels.squeeze())
        expected = fitted(image, shape).ravel().tolist()
        assert in_browser(page, "(...a) => [...fitted(...a)]", image, shape) == expected


@pytest.mark.parametrize(
    "name",
    [
        name if name.startswith("batch") else pytest.param(name, marks=pytest.mark.slow)
        for name in MODULES
    ],
)
def test_a_module_has_the_same_logits_in_the_browser(name, open_page, tmp_path):
    model, _ = MODULES[name]
    shape = (28, 28, 1) if name == "flax.nnx" else SHAPE
    variables, images = random_variables(model, shape), random_images(shape)
    expected = np.asarray(jax.jit(apply(model))(variables, images))
    spec = DataSpec(shape, tuple(f"class {n}" for n in range(CLASSES)))
    network = Network(mnist_cnn.experiment(), variables, model, 0, 0, spec)
    path = tmp_path / "page.html"
    path.write_bytes(build.build(network, convert(apply(model), variables, shape), {}))
    page = open_page(path)
    found = logits_in_browser(page, images)
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def logits_in_browser(page, images):
    program = """images => {
        const about = JSON.parse(document.getElementById("about").textContent);
        const text = atob(document.getElementById("weights").textContent);
        const weights = Uint8Array.from(text, c => c.charCodeAt(0));
        const network = makeNetwork(about.graph, weights, about.image_shape);
        return images.map(image => [...network(Uint8Array.from(image))]);
    }"""
    return np.array(page.evaluate(program, images.reshape(len(images), -1).tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "mlp", "speedrun", "accuracy", "ensemble"])
def test_the_networks_of_the_experiments_have_the_same_logits(name, open_page, tmp_path):
    config = config_of(ROOT / "experiments" / f"{name}.py")
    state = create_state(config)
    network = Network(config, state.variables, state.model, 0, config.seed)
    path = tmp_path / "page.html"
    path.write_bytes(FORMATS["html"](network))
    if name == "accuracy":
        assert path.stat().st_size < 3_000_000
    images = read_idx("t10k-images-idx3-ubyte")[:3]
    found = logits_in_browser(open_page(path), images)
    np.testing.assert_allclose(found, network(images), rtol=0, atol=1e-5)


def test_an_operator_that_the_page_lacks_is_named(digits, monkeypatch):
    own = build.operators()
    assert own >= {"Conv", "Gemm", "MaxPool", "Einsum", "ConvTranspose", "Where"}
    monkeypatch.setattr(build, "operators", lambda: own - {"MaxPool"})
    with pytest.raises(UserError) as error:
        FORMATS["html"](digits)
    expected = "the network has the operator MaxPool, which the page lacks; use onnx"
    assert str(error.value) == f"--format html: {expected}"


def test_an_operation_that_is_not_translated_is_refused_for_html():
    model = module(lambda _, x: jnp.sort(x, 1))
    network = Network(mnist_cnn.experiment(), random_variables(model, (28, 28, 1)), model, 0, 0)
    with pytest.raises(UserError, match=r"^--format html: the network has the operation sort"):
        FORMATS["html"](network)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=name, marks=pytest.mark.slow if name != "colours" else [])
        for name, spec in (
            ("colours", forms.COLOURED),
            ("grey", forms.GREY),
            ("fashion", NAMED["fashion_mnist"]),
            ("letters", DataSpec((28, 28, 1), tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))),
        )
    ],
)
def test_other_data_get_the_answers_of_predict(spec, open_page, tmp_path):
    network = random_network(spec)
    path = tmp_path / "page.html"
    path.write_bytes(FORMATS["html"](network))
    page = open_page(path, 320)
    title = page.locator("h1").text_content()
    assert title == ("Draw a character" if spec.is_handwriting else "Choose a picture")
    assert page.locator("#drawing").is_visible() == spec.is_handwriting
    files = [ROOT / "docs" / "nine.png", HANDWRITING / "hwd1000" / "3-007.png"]
    for file in files:
        upload(page, file)
        same_answer(page, predicted(network, file))
        assert page.evaluate("document.documentElement.scrollWidth") == 320
    if not spec.is_handwriting:
        assert page.locator("#bars li").count() == min(10, spec.num_classes)


class OneLayer(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))


def random_network(spec, seed=0):
    model = OneLayer(spec.num_classes)
    variables = init_variables(model, jax.random.key(seed), spec)
    return Network(mnist_cnn.experiment(), variables, model, 0, seed, spec)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_or_none"])
def test_an_ensemble_says_how_many_of_its_members_differ(loss, open_page, tmp_path):
    members = [random_network(MNIST, seed) for seed in (1, 2, 3)]
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.variables for one in members))
    model = Ensemble(members[0].model, or_none=loss == "cross_entropy_or_none")
    config, temperatures = mnist_cnn.experiment(loss=loss), (2.0, 0.7, 1.5, 3.0)
    network = Network(config, variables, model, 0, (1, 2, 3), MNIST, temperatures)
    path = tmp_path / "page.html"
    path.write_bytes(FORMATS["html"](network))
    page = open_page(path)
    assert "ensemble of seeds 1 to 3" in page.locator("footer").inner_text()
    for file in (ROOT / "docs" / "nine.png", HANDWRITING / "hwd1000" / "3-007.png"):
        upload(page, file)
        answer = predicted(network, file)
        assert answer.error or "members" in answer.said()
        same_answer(page, answer)


def test_errors_are_in_the_words_of_predict(open_page, digits_page, digits, tmp_path):
    page = open_page(digits_page)
    blank = Image.new("L", (90, 90), 255)
    blank.save(tmp_path / "blank.png")
    specks = blank.copy()
    specks.putpixel((40, 40), 0)
    specks.save(tmp_path / "specks.png")
    Image.new("L", (2, 3), 255).save(tmp_path / "small.png")
    (tmp_path / "empty.png").touch()
    for name in ("blank.png", "specks.png", "small.png", "empty.png"):
        upload(page, tmp_path / name)
        error = predicted(digits, tmp_path / name).error
        assert error and said(page)[0] == f"{name}: {error}"
    (tmp_path / "text.png").write_text("no picture")
    nine = (ROOT / "docs" / "nine.png").read_bytes()
    (tmp_path / "half.png").write_bytes(nine[: len(nine) // 20])
    unread = {"text.png": "no picture that can be read, expected PNG", "half.png": "damaged: "}
    for name, expected in unread.items():
        upload(page, tmp_path / name)
        assert predicted(digits, tmp_path / name).error.startswith(expected)
        assert said(page)[0].startswith(f"{name}: {expected}")


def test_the_page_cannot_send_anything_and_asks_its_server_for_itself_only(
    browser, digits_page, digits
):
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(arguments[1])

    handler = partial(Handler, directory=digits_page.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{digits_page.name}"
        page = browser.new_page()
        page.goto(address)
        upload(page, ROOT / "docs" / "nine.png")
        same_answer(page, predicted(digits, ROOT / "docs" / "nine.png"))
        tried = page.evaluate(
            """async address => {
                const results = [];
                await fetch(address).catch(error => results.push(error.name));
                const image = new Image();
                image.src = address + "?image";
                await new Promise(resolve => { image.onload = image.onerror = resolve; });
                results.push(image.naturalWidth, navigator.sendBeacon(address + "?beacon", "x"));
                const script = document.createElement("script");
                script.textContent = "window.injected = true";
                document.body.append(script);
                return [...results, window.injected === undefined];
            }""", address,
        )  # fmt: skip
        page.wait_for_timeout(200)
        page.close()
        server.shutdown()
    assert tried[0] == "TypeError" and tried[1] == 0 and tried[-1]
    assert [line for line in asked if "GET" in line or "POST" in line] == [
        f"GET /{digits_page.name} HTTP/1.1"
    ]


NO_WORKER = "delete window.Worker;"
FAILING_WORKER = """
window.Worker = class { postMessage() {} terminate() {} constructor() {
    setTimeout(() => this.onerror(new Event("error")), 300); } };
"""


@pytest.mark.parametrize("script", [NO_WORKER, FAILING_WORKER], ids=["none", "failing"])
def test_a_browser_without_workers_gets_the_same_answer(script, open_page, digits_page, digits):
    page = open_page(digits_page, script=script)
    upload(page, ROOT / "docs" / "nine.png")
    same_answer(page, predicted(digits, ROOT / "docs" / "nine.png"))


SLOW_WORKER = """
window.Worker = class extends Worker { postMessage(...message) {
    setTimeout(() => super.postMessage(...message), 300); } };
"""


def test_an_answer_is_never_shown_for_what_is_gone(open_page, digits_page):
    page = open_page(digits_page, script=SLOW_WORKER)
    page.set_input_files("#file", ROOT / "docs" / "nine.png")
    page.locator("#picture").wait_for()
    page.locator("#clear").click()
    touch(page, SEVEN)
    page.locator("#drawing").press("Delete")
    page.wait_for_timeout(1200)
    assert said(page) == ("Nothing is drawn yet.", None)
    assert page.locator("#bars li, #seen li").count() == 0
    touch(page, SEVEN)
    wait_for(lambda: said(page)[0].startswith("7  "))


@pytest.mark.parametrize("width", [320, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_page_is_usable_on_a_phone_and_by_keyboard(width, open_page, digits_page):
    page = open_page(digits_page, width)
    test = read_idx("t10k-images-idx3-ubyte")[:12, ..., 0]
    number(test, [12])[0].save(wide := digits_page.with_name("wide.png"))
    upload(page, wide)
    wait_for(lambda: page.locator("#seen li").count() == 12)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for place in ("#clear", "label:has(#file)"):
        box = page.locator(place).bounding_box()
        assert box["height"] >= 44 and box["width"] >= 44
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("[aria-live=polite] #answer").count() == 1
    page.locator("body").click(position={"x": 1, "y": 1})
    order = []
    for _ in range(2):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["clear", "file"]  # the drawing is hidden behind the picture
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    assert page.locator("#drawing").is_visible()


@pytest.mark.parametrize("scale", [1, 7])
def test_boxes_are_drawn_around_the_digits(scale, open_page, digits_page, tmp_path):
    page = open_page(digits_page)
    image, boxes = number(read_idx("t10k-images-idx3-ubyte")[:3, ..., 0], [3])
    image = image.resize((scale * image.width, scale * image.height))
    image.save(tmp_path / "three.png")
    upload(page, tmp_path / "three.png")
    wait_for(lambda: page.locator("#seen li").count() == 3)
    columns = page.evaluate(
        """() => { const canvas = document.getElementById("boxes");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.width, canvas.height, ...[...Array(canvas.width).keys()].filter(
                x => data[4 * (canvas.width * Math.floor(canvas.height / 2) + x) + 3] > 100)]; }"""
    )
    width, height, *columns = columns
    assert height == pytest.approx(width * image.height / image.width, abs=1)
    for left, _, right, _ in boxes:
        for side in (left, right):
            place = scale * side * width / image.width
            assert min(abs(column - place) for column in columns) <= 5 * max(1, width / 250)


@pytest.mark.slow
def test_the_page_says_which_network_it_has(trained_base, open_page, tmp_path):
    path = tmp_path / "page.html"
    out, _ = run("mnist_cnn.export", "--workdir", trained_base, "--format=html", "--output", path)
    assert f"{path}: html, {path.stat().st_size:,} bytes, seed 1337, step 200" in out
    result = json.loads((trained_base / "result.json").read_text())
    accuracy = f"{100 * result['test']['accuracy'][0]:.2f} %"
    page = open_page(path)
    expected = f"Network: base, seed 1337, step 200, test accuracy {accuracy}."
    assert page.locator("footer").inner_text().endswith(expected)
    about = json.loads(page.locator("#about").text_content())
    assert about["metadata"]["params_sha256"] == result["params_sha256"][0]


def test_the_wheel_contains_the_files_of_the_page():
    package = ROOT / "mnist_cnn"
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    globs = setuptools["package-data"]["mnist_cnn"]
    packed = {path for glob in globs for path in package.glob(glob)}
    folder = pathlib.Path(build.__file__).parent
    files = {path for path in folder.rglob("*") if path.suffix in (".js", ".html")}
    assert len(files) == 12 and files <= packed
