"""Puts the network of a run into the package, with its model card.

    python -m benchmarks.packaged_network --workdir runs/digits

The run is one of experiments/digits.py. The card is made of the run's result.json and of the record
handwriting.json; it is written to mnist_cnn/digits/MODEL_CARD.md, and into the file's metadata.
"""

import argparse
import json
import pathlib
import runpy
from typing import Any

from mnist_cnn.analysis import export_formats, packaged
from mnist_cnn.analysis.answers import NO_DIGIT, SURE
from mnist_cnn.analysis.loading import load

RESULTS = pathlib.Path(__file__).with_name("results")
EXPERIMENT = RESULTS.parents[1] / "experiments" / "digits.py"
CARD = packaged.FILE.with_name("MODEL_CARD.md")
TEXT = """\
# The network that comes with the package

It reads handwritten digits: 28 x 28 pixels, ink on paper, as MNIST's, to which `predict` brings a
picture. Besides the ten digits it knows "no digit".

- **Network**: `compact_views` ([`models/compact.py`](../models/compact.py)), 177,386 parameters,
  0.7 MB; it looks at each image three times.
- **Data**: MNIST's 60,000 training images (Yann LeCun and Corinna Cortes, CC BY-SA 3.0), and in
  each step {made} made images to {batch_size} of MNIST: {drawn} digits drawn in printed and
  European forms, {others} that are no digits (letters and signs, scribbles, two digits, parts of
  digits, textures). No photo or scan of others' handwriting.
- **Recipe**: [`experiments/digits.py`](../../experiments/digits.py): {num_epochs} epochs, Adam with
  a cosine schedule, averaged weights, random affine changes and changes of style (digits as wide as
  scans make them, stroke width up to that of a marker, faint parts, gaps, remnants of lines, blur,
  coarse pixels, cut edges, contrast); the loss has an eleventh class "no digit", whose logit is 0.
  Seed {seed}, {steps:,} steps, params SHA-256 `{sha256}`.
- **MNIST's test images**, read once after the last step: {accuracy:.2%}, NLL {loss:.4f} (with the
  class "no digit").
- **Chosen** on MNIST's training images and on the pictures below, with ten trainings: results on
  these pictures are not of untouched data.
- **Limits**: the letters I, O and S are answered as 1, 0 and 5. Digits of very few pixels (8 x 8)
  and 1s with a long flag are often unsure. Digits must be
  upright (within 12 degrees) and must not touch each other.

Other people's handwriting, measured by `python -m benchmarks.handwriting` ({processor}, {cores}
cores); an answer is sure from a probability of {sure:.0%}, and "no digit" from {no_digit:.0%}:

{table}
"""


def table(measured: dict[str, Any]) -> str:
    """A row for each source of pictures."""
    lines = ["| pictures | number | correct | sure | wrong of the sure |", "| --- |" + " --- |" * 4]
    for name, one in measured["sources"].items():
        count, sure = one["pictures"], one["sure"]
        wrong = f"{one['sure_but_wrong'] / sure:.1%}" if sure else ""
        cells = (f"{count:,}", f"{one['correct'] / count:.1%}", f"{sure / count:.1%}", wrong)
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def card(result: dict[str, Any], measured: dict[str, Any]) -> str:
    """The text of the card."""
    experiment = runpy.run_path(str(EXPERIMENT))
    config, made = experiment["get_config"](), experiment["MADE"]
    return TEXT.format(
        made=sum(made.values()),
        drawn=made["digits"],
        others=sum(made.values()) - made["digits"],
        batch_size=config["batch_size"],
        num_epochs=config["num_epochs"],
        seed=result["seeds"][0],
        steps=result["steps"],
        sha256=result["params_sha256"][0],
        accuracy=result["test"]["accuracy"][0],
        loss=result["test"]["loss"][0],
        processor=measured["environment"]["processor"],
        cores=measured["environment"]["cpu_count"],
        sure=SURE,
        no_digit=NO_DIGIT,
        table=table(measured),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="the run")
    workdir = parser.parse_args().workdir
    result = json.loads((workdir / "result.json").read_text())
    measured = json.loads((RESULTS / "handwriting.json").read_text())
    text = card(result, measured)
    CARD.write_text(text)
    packaged.FILE.write_bytes(export_formats.safetensors(load(workdir), model_card=text))
    print(f"{packaged.FILE}: {packaged.FILE.stat().st_size:,} bytes; {CARD}")


if __name__ == "__main__":
    main()
