"""Serves a page that shows the network's probabilities for what you draw, or for a picture.

    python -m mnist_cnn.demo [--workdir DIR] [--seed SEED] [--port PORT] [--config EXPERIMENT]

For images like MNIST's the page has a canvas, for others it takes a picture.
In a notebook: `demo.launch(mnist_cnn.load(DIR))`. Page and drawing stay on this machine: there
are no web fonts, no analytics and no version check. Needs the extra `demo` (gradio).
"""

import base64
import contextlib
import io
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from PIL import Image

import mnist_cnn
from mnist_cnn import command_line
from mnist_cnn.analysis.answers import answer_to, look
from mnist_cnn.analysis.packaged import PACKAGED
from mnist_cnn.digits.pictures import decode
from mnist_cnn.errors import ConfigError, PictureError, UserError, import_problem

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network

# gradio's own canvas needs WebGL, reports a stroke only at its end, and starts without a pen.
_HTML = """
<canvas width="336" height="336" tabindex="0" aria-label="Draw here"></canvas>
<button type="button">Clear</button>
"""
_CSS = """
canvas, button { border: 1px solid #888; border-radius: 6px; }
canvas { display: block; width: min(336px, 100%); touch-action: none; cursor: crosshair; }
button { margin-top: 10px; padding: 6px 18px; }
"""


def launch(network: "Network", **options: Any) -> Any:
    """Serves and shows a page, also in a notebook; takes and returns what gradio's launch does."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    _bypass_proxy()
    with _without_socks_proxy():
        return _launch(network, options)


def _launch(network: "Network", options: dict[str, Any]) -> Any:
    try:
        import gradio as gr
    except ImportError as error:
        reason = import_problem(error, "pip install 'mnist_cnn[demo]'")
        raise UserError(f"the page: {reason}") from None

    spec = network.spec
    height, width, _ = spec.image_shape

    def drawn(data_url: str) -> Image.Image:
        return decode(io.BytesIO(base64.b64decode(data_url.partition(",")[2])))

    def recognize(given: Any) -> tuple[dict[str, float], str, np.ndarray | None]:
        try:
            found = look(drawn(given) if spec.is_handwriting else given, spec)
        except (PictureError, ValueError, AttributeError):  # nothing is drawn or chosen yet
            return {}, "", None
        answer = answer_to("the drawing", network, found)
        enlarged = Image.fromarray(np.hstack([one.form for one in answer.found]))
        scale = max(1, 280 // max(enlarged.size))
        size = (enlarged.width * scale, enlarged.height * scale)
        seen = np.asarray(enlarged.resize(size, Image.Resampling.NEAREST))
        if answer.error:
            return {}, f"This is no {spec.noun}.", seen
        doubt = "" if answer.sure else "Unsure."
        if len(answer.digits) > 1:
            each = ", ".join(f"{one.digit} ({one.probability:.0%})" for one in answer.digits)
            return {answer.text: answer.probability}, f"{doubt} {each}", seen
        (one,) = answer.digits
        pairs = zip(spec.class_names, one.probabilities.tolist(), strict=True)
        return dict(pairs), doubt, seen

    what = "a digit" if spec.is_digits else "a character"
    title, text = f"Draw {what}", "The bars follow your pen."
    if not spec.is_handwriting:
        title, text = "Choose a picture", f"It is scaled to {width} x {height} pixels."
    with gr.Blocks(title=f"mnist_cnn: {title.lower()}", delete_cache=(60, 60)) as page:
        gr.Markdown(f"# {title}\n{text}")
        with gr.Row():
            with gr.Column(min_width=370):
                js = pathlib.Path(__file__).with_name("demo_canvas.js").read_text()
                pad: Any
                if spec.is_handwriting:
                    pad = gr.HTML(
                        html_template=_HTML, css_template=_CSS, js_on_load=js, elem_id="canvas"
                    )
                else:
                    pad = gr.Image(
                        label="Picture", type="pil", image_mode=None, elem_id="picture",
                        sources=["upload", "clipboard"], height=336,
                    )  # fmt: skip
            with gr.Column(min_width=220):
                bars = gr.Label(
                    label="Probability", num_top_classes=min(10, spec.num_classes), elem_id="bars"
                )
                note = gr.Markdown(elem_id="note")
            seen = gr.Image(
                label="What the network sees", format="png", height=336, buttons=[],
                interactive=False, min_width=300, elem_id="seen",
            )  # fmt: skip
        changed = pad.input if spec.is_handwriting else pad.change
        changed(
            recognize, pad, [bars, note, seen], show_progress="hidden", trigger_mode="always_last"
        )
    network.probabilities(np.zeros((1, *spec.image_shape), np.uint8))  # compiles
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",))
    defaults = {"theme": theme, "share": False, "footer_links": [], "quiet": True}
    return page.launch(**defaults | options)


def _bypass_proxy() -> None:
    """Adds this machine to NO_PROXY: no proxy can reach gradio's address, which it requests."""
    names = ("no_proxy", "NO_PROXY")  # Python prefers the first: both get the hosts of both
    hosts = [host for name in names for host in os.environ.get(name, "").split(",") if host]
    if "*" not in hosts:
        value = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))
        os.environ.update(dict.fromkeys(names, value))


@contextlib.contextmanager
def _without_socks_proxy() -> Iterator[None]:
    """Hides SOCKS proxies: httpx, which gradio imports, fails on them, also for this machine."""
    hidden = {
        name: os.environ.pop(name)
        for name, value in list(os.environ.items())
        if name.lower().endswith("_proxy") and value.lower().startswith("socks")
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def main(arguments: list[str]) -> int:
    args = flags.FLAGS
    if len(arguments) > 1:
        raise ConfigError("expected flags only, such as --workdir DIR; see --helpshort")
    command_line.silence_libraries()
    network = mnist_cnn.load(args.workdir or PACKAGED, args.config, args.seed)
    try:
        _, address, _ = launch(
            network, server_name="127.0.0.1", server_port=args.port, prevent_thread_lock=True
        )
    except OSError:
        raise UserError(f"--port {args.port}: cannot be used; give another port") from None
    print(f"draw at {address} (step {network.step:,}; Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


if __name__ == "__main__":  # an import defines no flags
    command_line.define_network_flags(PACKAGED)
    flags.DEFINE_integer(
        "port", None, "The page's port; by default the first free one from 7860.", 1, 65535
    )
    command_line.run_command(main, command_line.parse_flags)
