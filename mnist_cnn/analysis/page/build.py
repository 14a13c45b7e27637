"""Writes a network into one HTML file that recognizes pictures in any browser, without a network.

The page brings a picture to the network's form as `mnist_cnn.digits` does (digits/), computes
the graph that `--format onnx` writes too (network.js), and answers as `predict` does (answer.js).
"""

import base64
import hashlib
import json
import pathlib
import re
import string
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_cnn.analysis.answers import NO_DIGIT, SURE
from mnist_cnn.analysis.theme import DARK, LIGHT
from mnist_cnn.analysis.to_onnx.graph import Graph
from mnist_cnn.config import tested_name
from mnist_cnn.digits.pictures import MAX_PIXELS
from mnist_cnn.errors import UserError
from mnist_cnn.runner.results import network_label

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network

_FOLDER = pathlib.Path(__file__).parent
# Functions have the names of those in the Python files, and compute the same steps in the same
# order: tests/analysis/test_export_page.py compares their results.
_DIGITS = ("libraries", "pictures", "ink", "paper", "frames", "mnist_form", "lines", "fitted")
# Also run outside of the page, in a worker.
_ENGINE = (*(f"digits/{name}.js" for name in _DIGITS), "network.js", "answer.js")


def build(network: "Network", graph: Graph, metadata: Mapping[str, str]) -> bytes:
    """The page of a network whose program from `images` to `logits` is `graph`.

    Those of an ensemble are followed by the logits of its members.
    Raises UserError if the page lacks an operator of the graph.
    """
    spec = network.spec
    program, weights = _program(graph)
    about = {
        "image_shape": spec.image_shape,
        "class_names": spec.class_names,
        "is_digits": spec.is_digits,
        "is_handwriting": spec.is_handwriting,
        "none": network.knows_none,
        "temperatures": network.temperatures,
        "sure": SURE,
        "noDigit": NO_DIGIT,
        "max_pixels": MAX_PIXELS,
        "graph": program,
        "metadata": metadata,
    }
    engine = "\n".join(map(_read, _ENGINE))
    script = _read("page.js")
    what = "a digit" if spec.is_digits else "a character"
    title = f"Draw {what}" if spec.is_handwriting else "Choose a picture"
    light, dark = (
        f"--paper: {theme.background}; --ink: {theme.text}; --soft: {theme.caption}; "
        f"--line: {theme.line}; --bar: {theme.series[0]}; --warning: {theme.series[1]};"
        for theme in (LIGHT, DARK)
    )
    page = string.Template(_read("page.html")).substitute(
        title=title,
        light=light,
        dark=dark,
        source=escape(_source(network)),
        hashes=" ".join(map(_hash, (engine, script))),
        engine=engine,
        script=script,
        about=json.dumps(about, ensure_ascii=False).replace("<", "\\u003c"),
        weights=base64.b64encode(weights).decode(),
    )
    return page.encode()


def operators() -> set[str]:
    """The names of ONNX's operators that the page has."""
    return set(re.findall(r"^OPERATORS\.(\w+) =", _read("network.js"), re.MULTILINE))


def _program(graph: Graph) -> tuple[dict[str, Any], bytes]:
    """The graph for network.js, and the bytes of its constants."""
    known = operators()
    for node in graph.nodes:
        if node.kind not in known:
            raise UserError(
                f"--format html: the network has the operator {node.kind}, which the page lacks; "
                "use onnx"
            )
    constants, content = {}, bytearray()
    for name, array in graph.constants.items():
        array = _smallest(name, array)
        content += bytes(-len(content) % 4)
        constants[name] = {
            "type": array.dtype.name, "shape": array.shape, "start": len(content)
        }  # fmt: skip
        content += array.tobytes()
    nodes = [vars(node) for node in graph.nodes]
    return {"nodes": nodes, "constants": constants}, bytes(content)


def _smallest(name: str, array: np.ndarray) -> np.ndarray:
    """The array in little-endian float32, or in the smallest type that has its integers."""
    if array.dtype.kind == "f":
        return array.astype("<f4")
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    for dtype in ("<u1", "<i2", "<i4"):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return array.astype(dtype)
    raise UserError(
        f"--format html: the network's {name} has integers of more than 32 bits, which the page "
        "lacks; use onnx"
    )


def _source(network: "Network") -> str:
    """Which network it is, in words."""
    accuracy, tested = network.test_accuracy, tested_name(network.config)
    parts = [
        str(network.config["name"]),
        network_label(network.seed, network.step),
        *([] if accuracy is None else [f"{tested} accuracy {100 * accuracy:.2f} %"]),
    ]
    return ", ".join(parts)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The source of a script for the Content-Security-Policy."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"
