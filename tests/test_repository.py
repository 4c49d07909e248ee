"""The repository itself: which way imports run, what lies where, and whether Hugging Face Spaces can still install it."""

import ast
import datetime
import graphlib
import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
MEGABYTE = 1_000_000


def repository_files() -> list[Path]:
    """What git keeps or is about to keep."""
    try:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listed.returncode:
        pytest.skip("this copy is not a git repository")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# --- tests that run again -----------------------------------------------------------------------------------------------------


AGAIN = """
import pytest
from playwright.sync_api import TimeoutError as Waited

tries = []

def try_of(name):
    tries.append(name)
    return tries.count(name)

def test_waits_in_vain_once():
    if try_of("once") == 1:
        raise Waited("Page.wait_for_selector: Timeout 100ms exceeded.")

def test_waits_in_vain_twice():
    raise Waited("Locator.click: Timeout 100ms exceeded.")

def test_sees_something_wrong():
    assert try_of("wrong") == 2, "TimeoutError: Page.goto: Timeout 100ms exceeded."

def test_sees_something_wrong_after_waiting():
    try:
        raise Waited("Page.goto: Timeout 100ms exceeded.")
    except Waited:
        assert try_of("after") == 2

def test_is_refused_by_python():
    if try_of("python") == 1:
        raise TimeoutError("timed out")

@pytest.fixture
def closed():
    yield
    assert tries.count("closed") == 2

def test_waits_in_vain_and_leaves_something_wrong(closed):
    if try_of("closed") == 1:
        raise Waited("Page.goto: Timeout 100ms exceeded.")
"""


def test_only_what_waited_in_vain_for_the_browser_runs_once_more(tmp_path):
    pytest.importorskip("pytest_rerunfailures")
    (tmp_path / "test_pages.py").write_text(AGAIN)
    (options,) = re.findall(r"^AGAIN := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *shlex.split(options), "test_pages.py"]
    said = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True).stdout
    again = set(re.findall(r"^RERUN test_pages.py::test_(\w+)", said, re.MULTILINE))
    assert again == {"waits_in_vain_once", "waits_in_vain_twice"}, said
    assert "5 failed, 1 passed, 1 error, 2 rerun" in said, said


# --- imports ------------------------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, relative ones spelled out."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


# Who may not import what. A folder's files may import everything that is not named here.
FORBIDDEN = {
    "core": {"app", "ui", "scripts", "gradio", "gradio_client", "matplotlib", "plotly"},
    "ui": {"app", "scripts"},
    "scripts": {"gradio"},
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_run_one_way(folder):
    wrong = {path.name: bad for path in sources(folder) if (bad := roots(path) & FORBIDDEN[folder])}
    assert not wrong, f"app -> ui -> core -> (torch, diffusers, transformers), and never back: {wrong}"


def test_the_parts_of_core_import_each_other_in_no_circle():
    names = {module_name(path) for path in sources("core")}
    graph = {module_name(path): (imports(path) & names) - {module_name(path), "core"} for path in sources("core")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these import each other, so none can be read first: {' -> '.join(error.args[1])}")


def test_a_tab_does_not_import_a_tab():
    tabs = {module_name(path): path for path in sources("ui") if re.search(r"^TITLE\b", path.read_text("utf-8"), re.MULTILINE)}
    wrong = {name: others for name, path in tabs.items() if (others := imports(path) & (tabs.keys() - {name}))}
    assert not wrong, f"what two tabs need lies in ui/common.py, ui/texts.py or ui/render.py: {wrong}"


def test_importing_core_brings_neither_gradio_nor_a_drawing_library():
    modules = [module_name(path) for path in sources("core")]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"gradio", "matplotlib", "plotly"} & set(loaded)


# --- what lies where ----------------------------------------------------------------------------------------------------------

TOP = {
    ".ci", ".gitignore", "LICENSE", "Makefile", "README.md", "app.py", "assets", "core", "docs", "pyproject.toml", "requirements.txt",
    "scripts", "tests", "ui",
}  # fmt: skip


def test_the_top_level_is_bare():
    assert {path.relative_to(ROOT).parts[0] for path in repository_files()} <= TOP


def test_files_travel_without_large_file_storage():
    big = {str(path.relative_to(ROOT)): size for path in repository_files() if (size := path.stat().st_size) >= 9 * MEGABYTE}
    assert not big, f"9 MB is the most for one file; save_pretrained(max_shard_size=…) cuts weights into shards: {big}"


def test_the_embedded_models_are_light_to_clone():
    """120 MB for the base model; with the family, in which git keeps equal files once, 160."""
    weights = [path for path in repository_files() if path.suffix == ".safetensors"]
    base = [path for path in weights if "emoji" in path.parts]
    assert sum(path.stat().st_size for path in base) < 120 * MEGABYTE
    once = {hashlib.sha256(path.read_bytes()).digest(): path.stat().st_size for path in weights}
    assert sum(once.values()) < 160 * MEGABYTE
    assert not [path for path in repository_files() if path.suffix in {".bin", ".ckpt", ".pt", ".pth", ".pkl"}], (
        "safetensors alone"
    )


def test_no_file_names_a_package_index():
    # Written in two parts, or this file would be the first that does.
    forbidden = re.compile(
        "|".join(["index" + "-url", "find" + "-links", r"pypi\.org/" + "simple", r"download\.pytorch\." + "org"])
    )
    texts = [
        p
        for p in repository_files()
        if p.suffix in {".py", ".md", ".txt", ".toml", ".cfg", ".yml", ""} and "models" not in p.parts
    ]
    wrong = [str(path.relative_to(ROOT)) for path in texts if forbidden.search(path.read_text("utf-8", errors="replace"))]
    assert not wrong, f"which index serves a machine is that machine's own setting: {wrong}"


def test_the_readme_lists_every_file_of_core_and_ui():
    tree = re.search(r"```text\n(app\.py.*?)```", README, re.DOTALL)
    assert tree, "the README has no tree that starts with app.py"
    listed, folder = {"core": set(), "ui": set()}, ""
    for line in tree[1].splitlines():
        if line.strip() and not line.startswith(" "):
            folder = line.split("/")[0] if "/" in line.split()[0] else ""
        elif (name := re.match(r"  (\S+\.py)", line)) and folder in listed:
            listed[folder].add(name[1])
    there = {folder: {path.name for path in sources(folder) if path.read_text("utf-8").strip()} for folder in listed}
    assert listed == there


def front_matter() -> dict:
    return yaml.safe_load(README.split("---\n")[1])


def test_the_front_matter_is_what_spaces_reads():
    settings = front_matter()
    assert README.startswith("---\n")
    assert (settings["sdk"], settings["app_file"], settings["license"]) == ("gradio", "app.py", "apache-2.0")
    assert settings["python_version"] == "3.12", "a string: 3.10 as a number would be 3.1"
    assert len(settings["short_description"]) <= 60
    assert f"gradio=={settings['sdk_version']}" in (ROOT / "requirements.txt").read_text("utf-8").split()


# --- Spaces -------------------------------------------------------------------------------------------------------------------


@pytest.mark.network
def test_spaces_can_install_it(request, tmp_path):
    """Spaces adds gradio[oauth,mcp], spaces, uvicorn and websockets to requirements.txt; the mcp extra caps pydantic at 2.12.5.

    Asked once a day for the same requirements: resolving takes half a minute. torch and the two packages that would bring it are
    left out, as some indexes give torch's requirements only with the whole of its wheel.
    """
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "torch", "accelerate", "peft"))]
    sdk = front_matter()["sdk_version"]
    asked = [f"gradio[oauth,mcp]=={sdk}", "spaces", "uvicorn>=0.14.0", "websockets>=10.4", *pins]
    question = [str(datetime.date.today()), *asked]
    if request.config.cache.get("spaces/resolved", None) == question:
        return

    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--target",
        str(tmp_path / "nowhere"),
    ]
    terms = ["--python-version", "3.12", "--only-binary=:all:", "--retries", "0", "--timeout", "10"]
    report = tmp_path / "report.json"
    try:
        done = subprocess.run([*pip, *terms, "--report", str(report), *asked], capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index did not answer within three minutes")
    if done.returncode and "from versions: none" in done.stderr:
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
    versions = {
        item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(report.read_text("utf-8"))["install"]
    }
    assert versions["gradio"] == sdk
    assert tuple(map(int, versions["pydantic"].split("."))) <= (2, 12, 5)
    request.config.cache.set("spaces/resolved", question)
