"""The commands, links, paths and imports in the documents are right."""

import ast
import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

import mnist_cnn

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
DOCSTRINGS = {
    path.relative_to(ROOT).as_posix(): ast.get_docstring(ast.parse(path.read_text()))
    for path in EXPERIMENTS
}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PLACEHOLDERS = {"HOST:PORT": "host:1234"}  # what a reader replaces, and a value that is legal


def outside_fences(text):
    return FENCE.sub("", text)


def spans(text):
    return re.findall(r"`([^`\n]+)`", outside_fences(text))


def commands_of(text):
    """Every simple command, as words: of code blocks that are no Python, and of inline code."""
    lines = [line for kind, code in FENCE.findall(text) if kind != "python"
             for line in code.splitlines()]  # fmt: skip
    for line in [*lines, *spans(text), *re.findall(r"^    (python .*)", text, re.MULTILINE)]:
        for part in line.split(" && "):
            part = re.sub(r"^([A-Z_]+=\S+ )+", "", part.strip())
            if part.startswith(("python ", "pip install ")):
                for placeholder, value in PLACEHOLDERS.items():
                    part = part.replace(placeholder, value)
                yield shlex.split(part)
            elif part.startswith("--config."):
                config = ["--config", "experiments/base.py", *shlex.split(part)]
                yield ["python", "-m", "mnist_cnn.main", *config]


COMMANDS = {
    shlex.join(words): words
    for text in [*TEXTS.values(), *DOCSTRINGS.values()]
    for words in commands_of(text)
}

# Parses the flags of each command in a forked process, and does not run it.
PARSE = """
import json, os, runpy, sys
from absl import app
import flax.linen, jax, ml_collections, optax
import mnist_cnn.config, mnist_cnn.models.layers

def parse_only(main, argv=None, flags_parser=None):
    flags_parser(sys.argv)
    raise SystemExit(0)

app.run = parse_only
for module, *arguments in json.load(sys.stdin):
    child = os.fork()
    if not child:
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as done:
            os._exit(done.code or 0)
        os._exit(3)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        print("in:", module, *arguments, file=sys.stderr)
"""


@pytest.mark.slow
def test_every_command_of_the_package_is_accepted_by_its_flag_parser():
    commands = [words[2:] for words in COMMANDS.values() if "mnist_cnn." in words[2]]
    assert len(commands) > 30
    assert {module for module, *_ in commands} == {
        f"mnist_cnn.{name}"
        for name in ("main", "evaluate", "predict", "report", "export", "demo", "join")
    }
    unknown = ["mnist_cnn.main", "--config=experiments/base.py", "--config.learning_rat=1"]
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps([*commands, unknown]), cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused = [line for line in done.stderr.splitlines() if line.startswith("in:")]
    assert refused == ["in: " + " ".join(unknown)], done.stderr


@pytest.mark.parametrize(
    "words", [w for w in COMMANDS.values() if w[:3] == ["python", "-m", "pytest"]], ids=" ".join
)
def test_every_test_command_names_tests_and_markers_that_exist(words):
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    known = [line.partition(":")[0] for line in markers["ini_options"]["markers"]]
    rest = iter(words[3:])
    for word in rest:
        if word == "-m":
            assert next(rest).removeprefix("not ") in known
        else:
            assert (ROOT / word).exists()


def test_every_benchmark_and_script_exists_and_has_the_flags_that_are_quoted():
    for words in COMMANDS.values():
        if words[0] != "python" or "mnist_cnn." in words[2] or words[2] == "pytest":
            continue
        if words[1] == "-m":
            found = importlib.util.find_spec(words[2])
            assert found and found.origin, words
            files = (ROOT / "benchmarks" / "record.py", pathlib.Path(found.origin))
            source = "".join(path.read_text() for path in files)
        else:
            source = (ROOT / words[1]).read_text()
        for word in words[2:]:
            if word.startswith("--"):
                assert f'"{word.partition("=")[0]}"' in source, words


def test_every_extra_that_is_installed_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {word for words in COMMANDS.values() if words[0] == "pip" for word in words
             if word.startswith(".[")}  # fmt: skip
    assert named == {f".[{extra}]" for extra in ("test", "demo", "export")}
    assert {extra[2:-1] for extra in named} <= project["optional-dependencies"].keys()


def slugs(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", outside_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*TEXTS, "CHANGELOG.md"])
def test_links_and_images_resolve(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_fences(path.read_text())):
        if re.match("https?:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in slugs(linked.read_text()), target


@pytest.mark.parametrize("page", TEXTS)
def test_paths_in_the_text_exist(page):
    folders = ("mnist_cnn", "tests", "docs", "experiments", "notebooks", "benchmarks/peers")
    here = [*ROOT.glob("*"), *(ROOT / "benchmarks").glob("*")]
    here += [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths = "\n".join(f"/{path.relative_to(ROOT).as_posix()}" for path in here) + "\n"
    of_a_run = {"checkpoints/", "plugins/profile/"}
    for span in spans(TEXTS[page]):
        if re.fullmatch(r"[\w/]+(\.py|/)", span) and span not in of_a_run:
            assert f"/{span.rstrip('/')}\n" in paths, span


@pytest.mark.parametrize("page", TEXTS)
def test_python_in_the_text_imports_what_exists(page):
    for kind, code in FENCE.findall(TEXTS[page]):
        if kind != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mnist_cnn"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(
                        f"{node.module}.{alias.name}"
                    )


def test_the_changelog_names_modules_that_exist():
    rows = re.findall(r"^ *\| `.*\| (`.*`) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        package = ""
        for name in re.findall("`([^`]+)`", row):
            if name.startswith("."):  # beside the module before it
                name = package + name
            package = name.rpartition(".")[0]
            assert importlib.util.find_spec(name), name


def test_the_readme_is_one_page_and_links_every_other():
    readme = TEXTS["README.md"]
    assert len(readme.splitlines()) <= 200
    for path in [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        assert f"({path.relative_to(ROOT).as_posix()})" in readme


def test_the_readme_has_the_two_commands_that_ci_runs():
    lines = TEXTS["README.md"].splitlines()
    train = "pip install -c constraints.txt -e . && python -m mnist_cnn.main --config "
    assert [line for line in lines if line.startswith(train)]
    assert "pip install -c constraints.txt -e '.[test]' && python -m pytest -m 'not slow'" in lines


def test_the_version_is_the_same_everywhere():
    version = mnist_cnn.__version__
    assert f"\nmnist_cnn {version}, Python" in TEXTS["README.md"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_experiments_contains_experiments_only():
    for path in EXPERIMENTS:
        names = {getattr(node, "name", None) for node in ast.parse(path.read_text()).body}
        assert "get_config" in names, path
        command = f"python -m mnist_cnn.main --config experiments/{path.name}"
        assert command in DOCSTRINGS[f"experiments/{path.name}"]


def test_what_the_commands_in_the_text_write_is_ignored_by_git():
    """Else a later run would record that its commit has uncommitted changes."""
    flag = re.compile(r"--(?:workdir|output|save_inputs)[= ]([\w./-]+)")
    written = {"report.html", *(place for text in TEXTS.values() for place in flag.findall(text))}
    written -= {"DIR", "FILE", "FOLDER"}
    assert {"runs/base", "network.onnx"} <= written
    done = subprocess.run(
        ["git", "check-ignore", *written], cwd=ROOT, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == written


def test_licence_in_the_metadata_names_those_of_the_code_and_the_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0 AND CC-BY-SA-3.0"
    code, data = (" ".join((ROOT / path).read_text().split()) for path in project["license-files"])
    assert "Apache License" in code and "Attribution-Share Alike 3.0 license" in data
