"""How large the page of `export --format html` is, and how long it takes for a digit.

    python -m benchmarks.page [--rounds 30] [--output benchmarks/results]

It exports the networks of the experiments without training them, which changes neither, opens each
page in Chromium, and writes page.json and the picture docs/images/page.png. It needs the extra
`test` and Chromium, and takes a minute on 2 cores. A test compares the documents with the record.
"""

import pathlib
import runpy
import statistics
import tempfile
from typing import Any

from benchmarks import record

ROOT = pathlib.Path(__file__).parents[1]
NAMES = {  # experiment -> what it is in the table
    "digits": "of the package (`digits`)",
    "accuracy": "`accuracy.py`, with eleven views",
    "base": "`base.py`",
}
# The network is made as in page.js; the drawing is a canvas with a 7.
TIMES = """rounds => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const text = atob(document.getElementById("weights").textContent);
  const weights = Uint8Array.from(text, c => c.charCodeAt(0));
  const network = makeNetwork(about.graph, weights, about.image_shape);
  const canvas = document.getElementById("drawing"), pen = canvas.getContext("2d");
  Object.assign(pen, {strokeStyle: "#fff", lineWidth: 24});
  for (const place of [[90, 80], [240, 80], [130, 270]]) pen.lineTo(...place);
  pen.stroke();
  const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
  const image = {width: canvas.width, height: canvas.height, data, scale: 1};
  const seconds = {find: [], answer: []};
  let form;
  const timed = (list, compute) => {
    const start = performance.now();
    compute();
    list.push((performance.now() - start) / 1000);
  };
  for (let i = 0; i < rounds + 5; i++) {
    timed(seconds.find, () => { [{form}] = findDigits(image, false); });
    timed(seconds.answer, () => network(form));
  }
  return Object.fromEntries(Object.entries(seconds).map(([name, list]) => [name, list.slice(5)]));
}"""
THREE = [[(0.3, 0.3), (0.4, 0.22), (0.6, 0.25), (0.6, 0.4), (0.45, 0.5)],
         [(0.45, 0.5), (0.65, 0.58), (0.65, 0.75), (0.45, 0.82), (0.28, 0.75)]]  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """The rows of the table in docs/export-and-keras.md."""
    rows = []
    for name, title in NAMES.items():
        measured = result["networks"][name]
        seconds = statistics.median(measured["seconds"]["answer"])
        rows.append(f"| {title} | {measured['bytes'] / 1e6:.1f} MB | {seconds:.2f} s |")
    return rows


def finding(result: dict[str, Any]) -> float:
    """The median of the seconds that finding a digit takes."""
    return statistics.median(result["networks"]["digits"]["seconds"]["find"])


def _page(name: str) -> bytes:
    import mnist_cnn
    from mnist_cnn.analysis.export_formats import FORMATS
    from mnist_cnn.analysis.network import Network
    from mnist_cnn.training.state import create_state

    if name == "digits":
        return FORMATS["html"](mnist_cnn.load(name))
    experiment = runpy.run_path(str(ROOT / "experiments" / f"{name}.py"), run_name="experiment")
    config = experiment["get_config"]()
    state = create_state(config)
    return FORMATS["html"](Network(config, state.variables, state.model, 0, config.seed))


def _draw(page: Any) -> None:
    box = page.locator("#drawing").bounding_box()
    for stroke in THREE:
        for index, (x, y) in enumerate(stroke):
            place = box["x"] + box["width"] * x, box["y"] + box["height"] * y
            page.mouse.move(*place, steps=4)
            if index == 0:
                page.mouse.down()
        page.mouse.up()
    page.wait_for_timeout(1000)


def main() -> None:
    from playwright.sync_api import sync_playwright

    arguments = record.parse_arguments(__doc__, rounds=30)
    result: dict[str, Any] = {"environment": record.environment("page", arguments), "networks": {}}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        result["browser"] = f"Chromium {browser.version}"
        for name in NAMES:
            (path := pathlib.Path(folder, "page.html")).write_bytes(_page(name))
            page = browser.new_page(viewport={"width": 390, "height": 800})
            page.goto(path.as_uri())
            if name == "digits":
                _draw(page)
                page.screenshot(path=ROOT / "docs" / "images" / "page.png", full_page=True)
            seconds = page.evaluate(TIMES, arguments.rounds)
            result["networks"][name] = {"bytes": path.stat().st_size, "seconds": seconds}
            page.close()
        browser.close()
    print("\n".join(table(result)))
    print(record.write("page", arguments, result))


if __name__ == "__main__":
    main()
