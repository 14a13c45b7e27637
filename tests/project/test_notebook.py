"""The Colab notebook: its contents, and an execution of all cells in a fresh environment."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, result_of

from mnist_cnn import report

NOTEBOOK = ROOT / "notebooks" / "mnist_cnn_colab.ipynb"
RUNTIMES_JAX = "0.10.1"  # not the version that constraints.txt pins


@pytest.fixture(scope="module")
def notebook():
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(cell):
    return ast.parse(re.sub("^%.*", "", cell.source, flags=re.MULTILINE))


def test_its_outputs_are_stripped(notebook):
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))


def test_it_defines_nothing_and_imports_the_package(notebook):
    nodes = [node for cell in code(notebook) for node in ast.walk(tree(cell))]
    assert not [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
    ]
    imported = {f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom)
                and node.module.startswith("mnist_cnn") for alias in node.names}  # fmt: skip
    assert {name.removeprefix("mnist_cnn.") for name in imported} == {
        "runner.smoke", "report", "data.dataset", "digits.pictures", "predict", "demo"
    }  # fmt: skip
    for name in imported:
        assert importlib.util.find_spec(name)


def test_every_code_cell_follows_an_explanation(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    for index, kind in enumerate(kinds):
        if kind == "code":
            assert kinds[index - 1] == "markdown", notebook.cells[index].source
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall("^## ([0-9])", text, re.MULTILINE) == list("12345678")
    assert len(re.findall("seconds|minute", text)) >= 6


def test_every_setting_is_a_form_field(notebook):
    (cell,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    lines = cell.source.splitlines()
    assert all(re.fullmatch(r"[A-Z_]+ = \S+  # @param \{type:\"\w+\"\}", line) for line in lines)


def test_a_notebook_shows_the_plots_of_the_report(undisturbed):
    shown = report.pictures(undisturbed[0])
    html = shown._repr_html_()
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "Loss during training", "Error during training", "Confusion matrix",
        "Worst mistakes", "Calibration", "First-layer filters",
    ]  # fmt: skip
    assert html.count("data:image/png") == 2 * 6 and repr(shown) == "Pictures()"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A fresh environment with a kernel and another JAX version, without this project."""
    folder = tmp_path_factory.mktemp("runtime")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"jax=={RUNTIMES_JAX}" not in pins
    others = [pin for pin in pins if not re.match("jax(lib)?==", pin)]
    (folder / "constraints.txt").write_text("\n".join(others))
    pip = [
        python, "-m", "pip", "install", "-q", "-c", folder / "constraints.txt", "ipykernel",
        f"jax=={RUNTIMES_JAX}", f"jaxlib=={RUNTIMES_JAX}",
    ]  # fmt: skip
    subprocess.run(pip, check=True)
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "runtime", "language": "python"})
    )
    return folder


@pytest.mark.slow
def test_the_whole_notebook_runs_in_a_fresh_environment_and_keeps_its_jax(
    notebook, runtime, tmp_path, monkeypatch
):
    import nbclient

    source = tmp_path / "uploaded" / "mnist_cnn"  # the folder, as a user uploads it
    ignored = shutil.ignore_patterns(".*", "runs", "build", "docs", "tests", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    settings = {
        "SOURCE": str(source), "STEPS": 60, "SEEDS": 3, "SEED_STEPS": 20,
        "SAVE_TO": str(tmp_path / "kept"), "RUNS": "runs",
    }  # fmt: skip
    index = next(
        index for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )  # fmt: skip
    injected = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    cells = [*notebook.cells]
    cells.insert(index + 1, nbformat.v4.new_code_cell(injected))

    monkeypatch.setenv("JUPYTER_PATH", str(runtime / "jupyter"))
    monkeypatch.setenv("PIP_CONSTRAINT", str(runtime / "constraints.txt"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    work = tmp_path / "content"
    work.mkdir()
    executed = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
    nbclient.NotebookClient(
        executed, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()
    nbformat.write(executed, tmp_path / "executed.ipynb")  # for inspection

    shown = {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}
    text = {
        name: "".join(
            output.get("text", "") + output.get("data", {}).get("text/plain", "")
            for output in outputs
        )
        for name, outputs in shown.items()
    }
    assert f"(cpu), JAX {RUNTIMES_JAX}" in text["device"]
    assert text["device"].count("\u2713") == 8
    assert "test accuracy" in text["train"]
    for name in ("pictures", "seeds"):
        pages = [output.get("data", {}).get("text/html", "") for output in shown[name]]
        for title in ("Loss during training", "Confusion matrix", "Worst mistakes"):
            assert any(title in page and "data:image/png" in page for page in pages)
    assert re.search(r"mean test accuracy of 3 networks: \d+\.\d+ ± \d+\.\d+ %", text["seeds"])
    assert re.search(r"example\.png: \d  [\d.]+%", text["predict"])
    assert any("iframe" in output.get("data", {}).get("text/html", "") for output in shown["draw"])
    assert "saved in" in text["keep"]
    assert len(result_of(tmp_path / "kept" / "3-seeds")["seeds"]) == 3
    installed = subprocess.run(
        [runtime / "venv" / "bin" / "python", "-m", "pip", "freeze"], capture_output=True, text=True
    ).stdout
    assert f"jax=={RUNTIMES_JAX}\n" in installed and "tensorflow==" not in installed
