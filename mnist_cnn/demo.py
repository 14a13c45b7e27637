"""The command: a page to draw a digit on, with what the network makes of it.

    python -m mnist_cnn.demo --workdir DIR [--seed SEED] [--port PORT] [--config EXPERIMENT]

In a notebook: `demo.launch(mnist_cnn.load(DIR))`.  The page comes from this machine whole
(no web fonts, no analytics, no version check): it works without a network, and nothing that is
drawn leaves the machine.  Needs the extra `demo` (gradio).
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from PIL import Image

from mnist_cnn import command_line
from mnist_cnn.digits import pictures
from mnist_cnn.digits.mnist_form import mnist_form
from mnist_cnn.errors import ConfigError, PictureError, UserError

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network

# The canvas; the width of a stroke on it becomes MNIST's 2 to 3 pixels of 28.
_CANVAS = """
<canvas width="336" height="336" tabindex="0" aria-label="Draw a digit here"></canvas>
<button type="button">Clear</button>
"""
_STYLE = """
canvas { display: block; width: 336px; height: 336px; touch-action: none; cursor: crosshair;
         background: white; border: 1px solid #888; border-radius: 6px; }
button { margin-top: 10px; padding: 6px 18px; border: 1px solid #888; border-radius: 6px; }
"""
_DRAW = """
const canvas = element.querySelector('canvas');
const pen = canvas.getContext('2d');
let last = null, sent = 0;
function send() { sent = Date.now(); props.value = canvas.toDataURL(); trigger('input'); }
function clear() { pen.fillStyle = 'white'; pen.fillRect(0, 0, canvas.width, canvas.height); }
function place(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}
function draw(event) {
  if (last === null) return;
  const next = place(event);
  pen.lineWidth = 24; pen.lineCap = pen.lineJoin = 'round'; pen.strokeStyle = 'black';
  pen.beginPath(); pen.moveTo(...last); pen.lineTo(...next); pen.stroke();
  last = next;
  if (Date.now() - sent > 200) send();
}
canvas.addEventListener('pointerdown', event => {
  canvas.setPointerCapture(event.pointerId); last = place(event); draw(event);
});
canvas.addEventListener('pointermove', draw);
canvas.addEventListener('pointerup', event => { draw(event); last = null; send(); });
element.querySelector('button').addEventListener('click', () => { clear(); send(); });
clear();
"""


def page(network: Network) -> Any:
    """The page as a gradio.Blocks.

    Raises:
      UserError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gradio as gr
    except ImportError:
        raise UserError("the page needs gradio: pip install 'mnist_cnn[demo]'") from None

    def answer(drawing: str) -> tuple[dict[str, float], np.ndarray | None]:
        try:  # a data URL; what it holds is decoded as any file is
            png = base64.b64decode(drawing.partition(",")[2])
            seen = mnist_form(pictures.decode(io.BytesIO(png)))
        except (PictureError, ValueError):  # nothing is drawn yet
            return {}, None
        row = network.probabilities(seen[None, ..., None])[0]
        shown = Image.fromarray(seen).resize((280, 280), Image.Resampling.NEAREST)
        return {str(digit): float(p) for digit, p in enumerate(row)}, np.asarray(shown)

    with gr.Blocks(
        title="mnist_cnn: draw a digit", analytics_enabled=False, delete_cache=(60, 60)
    ) as blocks:
        gr.Markdown("# Draw a digit\nThe bars follow your pen.")
        with gr.Row():
            with gr.Column(min_width=370):
                canvas = gr.HTML(
                    "", html_template=_CANVAS, css_template=_STYLE, js_on_load=_DRAW,
                    elem_id="canvas",
                )  # fmt: skip
            with gr.Column(min_width=220):
                bars = gr.Label(label="Probability", num_top_classes=10, elem_id="bars")
            with gr.Column(min_width=300):
                seen = gr.Image(
                    label="What the network sees", format="png", height=336, buttons=[],
                    interactive=False, elem_id="seen",
                )  # fmt: skip
        canvas.input(
            answer, canvas, [bars, seen], show_progress="hidden", trigger_mode="always_last"
        )
    return blocks


def launch(network: Network, **options: Any) -> Any:
    """Shows the page, in a notebook too; `options` as for gradio's own launch.

    Returns:
      gradio's (application, local address, None).

    Raises:
      UserError: gradio is not installed.
    """
    blocks = page(network)
    import gradio as gr

    network.probabilities(np.zeros((1, 28, 28, 1), np.uint8))  # compiled before the first stroke
    own_fonts = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",))
    return blocks.launch(
        **{"theme": own_fonts, "share": False, "footer_links": [], "quiet": True} | options
    )


def main(arguments: list[str]) -> int:
    given = flags.FLAGS
    if given.workdir is None or len(arguments) > 1:
        raise ConfigError("expected --workdir DIR and flags only; see --helpshort")
    command_line.silence_libraries()
    import mnist_cnn

    network = mnist_cnn.load(given.workdir, given.config, given.seed)
    try:
        _, address, _ = launch(
            network, server_name="127.0.0.1", server_port=given.port, prevent_thread_lock=True
        )
    except OSError:
        raise UserError(f"--port {given.port}: cannot be listened at; give another") from None
    print(f"draw at {address} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    from ml_collections import config_flags

    flags.DEFINE_string("workdir", None, "The run directory of a trained network.")
    flags.DEFINE_integer("seed", None, "Which of a run's networks; the first.")
    flags.DEFINE_integer("port", None, "The page's port; None takes a free one from 7860 on.",
                         lower_bound=1, upper_bound=65535)  # fmt: skip
    config_flags.DEFINE_config_file(
        "config", None, "The experiment file, where it brought a module of its own."
    )
    command_line.command(main, command_line.parse_flags)
