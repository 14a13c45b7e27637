"""Serves a page that shows the network's probabilities for what you draw, or for a picture.

    python -m mnist_cnn.demo [--workdir DIR] [--seed SEED|all] [--config EXPERIMENT]
                             [--host HOST] [--port PORT]

Without --workdir it is the network that comes with the package. For images like MNIST's the page
has a canvas, for others it takes a picture. The flags --host and --port take precedence over the
variables GRADIO_SERVER_NAME and GRADIO_SERVER_PORT; --host=0.0.0.0 serves the whole network.
In a notebook: `demo.launch(mnist_cnn.load(DIR))`. Page and drawing stay on this machine: there
are no web fonts, no analytics and no version check. Needs the extra `demo` (gradio).
Exit status: 0 ended by Ctrl-C; 130 the same before the page is there; 1 an error; 2 bad usage.
"""

import base64
import contextlib
import errno
import io
import os
import pathlib
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from PIL import Image

import mnist_cnn
from mnist_cnn import command_line
from mnist_cnn.analysis.answers import answer_to, look
from mnist_cnn.analysis.packaged import PACKAGED
from mnist_cnn.digits.pictures import decode
from mnist_cnn.errors import ConfigError, PictureError, UserError, import_problem, shorten
from mnist_cnn.runner import results

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
_PAGE_CSS = """
#bars, #note { overflow-wrap: anywhere; }
#bars .confidence { white-space: nowrap; }
#note:not(:has(p)) { display: none; }
"""

_LOCALHOST = "127.0.0.1"
_PORTS = range(7860, 7960)  # gradio's own


def launch(network: "Network", **options: Any) -> Any:
    """Serves and shows a page, also in a notebook; takes and returns what gradio's launch does."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    _bypass_proxy(options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME") or _LOCALHOST)
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
    nothing = "This is no digit." if spec.is_digits else "This is none of the classes."

    def drawn(data_url: str) -> Image.Image:
        return decode(io.BytesIO(base64.b64decode(data_url.partition(",")[2])))

    def recognize(given: Any) -> tuple[dict[str, float], str, np.ndarray | None]:
        if not given:  # nothing is drawn or chosen yet
            return {}, "", None
        image = drawn(given) if spec.is_handwriting else given
        try:
            answer = answer_to("the drawing", network, look(image, spec))
        except PictureError:
            darkest, lightest = image.convert("L").getextrema()
            return {}, "" if darkest == lightest else nothing, None
        seen = _enlarged([one.form for one in answer.found])
        if answer.error:
            return {}, nothing, seen
        note = "" if answer.sure else "Unsure. "
        note += f"{answer.agreement.capitalize()}. " if answer.agreement else ""
        if len(answer.digits) > 1:  # no line break within "4 (98%)"
            each = [
                f"{one.digit}\N{NO-BREAK SPACE}({one.probability:.0%})" for one in answer.digits
            ]
            return {answer.text: answer.probability}, note + ", ".join(each), seen
        (one,) = answer.digits
        pairs = zip(spec.class_names, one.probabilities.tolist(), strict=True)
        return dict(pairs), note, seen

    what = "a digit" if spec.is_digits else "a character"
    title, text = f"Draw {what}", "The bars follow your pen."
    if spec.is_digits:
        text += " Several digits are read as a number."
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
                note = gr.Markdown(elem_id="note")
                bars = gr.Label(
                    label="Probability", num_top_classes=min(10, spec.num_classes), elem_id="bars"
                )
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
    defaults["css"] = _PAGE_CSS
    return page.launch(**defaults | options)


def _enlarged(forms: Sequence[np.ndarray]) -> np.ndarray:
    """Images of the network's form in rows of at most four, enlarged to about 280 pixels."""
    columns = min(4, len(forms))
    empty = [np.zeros_like(forms[0])] * (-len(forms) % columns)
    every = [*forms, *empty]
    rows = [np.hstack(every[start : start + columns]) for start in range(0, len(every), columns)]
    image = Image.fromarray(np.vstack(rows))
    scale = max(1, 280 // max(image.size))
    size = (image.width * scale, image.height * scale)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def _bypass_proxy(host: str = _LOCALHOST) -> None:
    """Adds this machine to NO_PROXY: no proxy can reach gradio's address, which it requests."""
    names = ("no_proxy", "NO_PROXY")  # Python prefers the first: both get the hosts of both
    hosts = [host for name in names for host in os.environ.get(name, "").split(",") if host]
    if "*" not in hosts:
        value = ",".join(dict.fromkeys([*hosts, _LOCALHOST, "localhost", host.strip("[]")]))
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


def _find_address(host: str | None, port: int | None) -> tuple[str, int]:
    """The IP address and the port to listen on: those given, those of gradio's variables, defaults.

    Raises UserError if this machine cannot listen there, ConfigError if the variable is no port.
    """
    variable = os.environ.get("GRADIO_SERVER_NAME", "")
    host_from = f"--host {host}" if host else f"GRADIO_SERVER_NAME={variable}"
    host = (host or variable or _LOCALHOST).strip("[]")
    ports: Sequence[int] = _PORTS
    if port or (variable := os.environ.get("GRADIO_SERVER_PORT", "")):
        if not port and not (variable.isdecimal() and 1 <= int(variable) <= 65535):
            text = f"GRADIO_SERVER_PORT: got {shorten(variable)}, expected a port, 1 to 65535"
            raise ConfigError(text)
        ports = [port or int(variable)]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(
            f"{host_from}: there is no such host; give 127.0.0.1 for this machine only, or 0.0.0.0 "
            "for the whole network"
        ) from None
    family, _, _, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    for port in ports:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((place[0], port, *place[2:]))
            return str(place[0]), port
        except OSError as error:
            problem = error
        if problem.errno == errno.EACCES:
            raise UserError(f"port {port}: not permitted; give --port a number from 1024") from None
        if problem.errno != errno.EADDRINUSE:
            raise UserError(
                f"{host_from}: this machine cannot listen there ({problem.strerror}); give "
                "127.0.0.1 for this machine only, or 0.0.0.0 for the whole network"
            )
    raise _taken(f"port {ports[0]} is" if len(ports) == 1 else f"ports {ports[0]} to {port} are")


def _taken(ports: str) -> UserError:
    return UserError(f"{ports} taken by another program; end it, or give another with --port")


def _urls(address: str, port: int) -> list[str]:
    """The page's URLs: for this machine, and if it serves the whole network, for other devices."""
    probes = {  # for documentation: a UDP socket finds the way there and sends nothing
        "0.0.0.0": (socket.AF_INET, _LOCALHOST, "203.0.113.1"),
        "::": (socket.AF_INET6, "::1", "2001:db8::1"),
    }
    addresses = [address]
    if address in probes:
        family, local, elsewhere = probes[address]
        addresses = [local]
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # OSError: there is no network
            addresses.append(probe.getsockname()[0])
    return [f"http://{f'[{one}]' if ':' in one else one}:{port}/" for one in addresses]


def main(arguments: list[str]) -> int:
    status = 130
    with contextlib.suppress(KeyboardInterrupt):
        args = flags.FLAGS
        if len(arguments) > 1:
            raise ConfigError("expected flags only, such as --workdir DIR; see --helpshort")
        address, port = _find_address(args.host, args.port)
        # gradio tries the port on this host, IPv4 only, whatever `server_name` is.
        os.environ["GRADIO_SERVER_NAME"] = _LOCALHOST if ":" in address else address
        os.environ.pop("GRADIO_SERVER_PORT", None)  # gradio fails on one that is no number
        command_line.silence_libraries()
        network = mnist_cnn.load(args.workdir or PACKAGED, args.config, args.seed)
        server_name = f"[{address}]" if ":" in address else address
        try:
            launch(network, server_name=server_name, server_port=port, prevent_thread_lock=True)
        except OSError:
            raise _taken(f"port {port} is") from None
        local, *others = _urls(address, port)
        label = f"step {network.step:,}"
        if network.members:
            label = results.network_label(network.seed, network.step)
        print(f"draw at {local} ({label}; Ctrl-C ends it)", flush=True)
        for url in others:
            print(f"on other devices in this network: {url}", flush=True)
        status = 0
        threading.Event().wait()
    return status


if __name__ == "__main__":  # an import defines no flags
    command_line.define_network_flags(PACKAGED)
    flags.DEFINE_string(
        "host", None, "The page's host; by default 127.0.0.1; 0.0.0.0 is the whole network."
    )
    flags.DEFINE_integer(
        "port", None, "The page's port; by default the first free one from 7860.", 1, 65535
    )
    command_line.run_command(main, command_line.parse_flags)
