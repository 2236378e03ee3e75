"""The layout holds: the trap of a top-level `kernels`, what is shipped, no stubs."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("vrga/**/*.py"), *ROOT.glob("benchmarks/*.py")]


def test_kernels_is_a_link_and_no_top_level_package():
    assert str((ROOT / "vrga" / "kernels").readlink()) == "../kernels"
    for folder in ("kernels", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()


def test_kernels_import_nothing_from_above():
    """Neither vrga nor transformers; and no kernel another one, nor the reference any. They meet
    in api.py alone, which nothing beside it imports; the columns' numbers are known to all, and
    the reference over pages knows the one over one piece."""
    shared = {"arguments", "launch"}
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level and path.stem == "api":
                assert (ROOT / "kernels" / f"{node.module}.py").exists()
            elif isinstance(node, ast.ImportFrom) and node.level:
                own = {*shared, "reference"}
                known = {"columns", *shared, *(["reference"] if path.stem == "pages" else [])}
                assert node.module in known, path
                assert node.module == "columns" or path.stem not in own, path
            elif isinstance(node, ast.ImportFrom):
                names.append(node.module)
            assert not [n for n in names if n.split(".")[0] in ("vrga", "transformers")], path


# Names that a release of transformers may change; all that knows them stands in vrga/hf/.
INTERNALS = re.compile(
    r"past_key_values|_attn_implementation|reorder_cache|is_compileable|mm_token_type_ids|"
    r"get_seq_length|_prepare_generation_config|cache_position|"
    r"\b\w*(?:Dynamic|Static|Sliding\w*|Quantized|Offloaded|Hybrid)(?:Cache|Layer)\b|"
    r"masking_utils|cache_utils|ALL_ATTENTION_FUNCTIONS|Attention(?:Mask)?Interface|_mask\b(?=\(.*sdpa)"
)


def test_transformers_internals_have_one_room():
    """What a release renames is mended in one place."""
    told = []
    for path in [*(ROOT / "vrga").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        inside = path.relative_to(ROOT).parts[1]
        if inside == "hf":
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            found = INTERNALS.search(line)
            if found:
                told.append(f"{path.relative_to(ROOT)}:{number}: {found[0]}")
    assert not told, "\n".join(told)


def test_the_core_imports_no_transformers():
    """Beside what builds, trains and evaluates models, vrga/hf/ alone does."""
    others = ("hf", "checkup", "demo", "evaluation", "analysis", "training", "kernels")
    core = [path for path in (ROOT / "vrga").rglob("*.py")
            if path.relative_to(ROOT / "vrga").parts[0] not in others]  # fmt: skip
    assert len(core) > 30
    for path in core:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [n.name for n in node.names] if isinstance(node, ast.Import) else []
            assert not [m for m in modules if m.split(".")[0] == "transformers"], path


def test_vllm_is_known_to_few_files_and_imported_where_it_runs():
    """All else of the package goes without it; the engine's attention alone subclasses its own."""
    told = []
    for path in (ROOT / "vrga").rglob("*.py"):
        source = path.read_text("utf-8")
        names = {node.module or "" for node in ast.walk(ast.parse(source))
                 if isinstance(node, ast.ImportFrom)}  # fmt: skip
        names |= {alias.name for node in ast.walk(ast.parse(source))
                  if isinstance(node, ast.Import) for alias in node.names}  # fmt: skip
        if any(name.split(".")[0] == "vllm" for name in names):
            told.append(path.relative_to(ROOT / "vrga").as_posix())
    rooms = ("cpu_attention", "cuda_attention", "device", "hooks", "plugin", "worker")
    assert sorted(told) == [f"engine/{name}.py" for name in rooms]
    for path in (ROOT / "vrga" / "engine").glob("*.py"):
        own = [node.module or "" for node in ast.parse(path.read_text("utf-8")).body
               if isinstance(node, ast.ImportFrom)]  # fmt: skip
        at_once = [name for name in own if name.split(".")[0] == "vllm"]
        assert not at_once or path.stem in ("cpu_attention", "cuda_attention"), path


def test_no_stub_stands_in_the_sources():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                if any(isinstance(n, ast.Name) and n.id == "overload" for n in node.decorator_list):
                    continue  # a signature, whose body follows
                body = [
                    n for n in node.body
                    if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
                ]  # fmt: skip
                documented = ast.get_docstring(node) is not None
                assert body or documented, f"{path}:{node.lineno} {node.name} is empty"
                assert not any(isinstance(n, ast.Pass) for n in body), f"{path}:{node.lineno}"
            if isinstance(node, ast.Name):
                assert node.id != "NotImplementedError", f"{path}:{node.lineno}"


@pytest.mark.slow
def test_sdist_and_wheel_carry_kernels_and_weights(tmp_path):
    code = (
        "from setuptools import build_meta as b; "
        f"print(b.build_sdist({str(tmp_path)!r})); print(b.build_wheel({str(tmp_path)!r}))"
    )
    # A copy, so that building leaves nothing in the tree; links stay links.
    copy = tmp_path / "tree"
    names = ["vrga", "kernels", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["mkdir", copy], check=True)
    subprocess.run(["cp", "-a", *(str(ROOT / n) for n in names), str(copy)], check=True)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=copy, capture_output=True)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        shipped = [name.split("/", 1)[-1] for name in archive.getnames()]
    with zipfile.ZipFile(wheel) as archive:
        installed = archive.namelist()
    for name in (
        "vrga/kernels/decode.py",
        "vrga/kernels/launch.py",
        "vrga/kernels/pages.py",
        "vrga/kernels/probe.py",
        "vrga/kernels/reference.py",
        "vrga/demo/weights/model.safetensors",
        "vrga/evaluation/tasks/common.yaml",
        "vrga/evaluation/tasks/documents.py",
        "vrga/demo/weights/vrga_config.json",
        "vrga/steering/patching.py",
        "vrga/py.typed",
        "vrga/report/report.html.jinja",
        "vrga/report/drawing.js",
        "vrga/app/viewer.js",
        "vrga/app/viewer.css",
        "vrga/evaluation/flips.html.jinja",
        "vrga/training/page.html.jinja",
        "vrga/training/paper-7b.yaml",
    ):
        assert name in shipped and name in installed
    assert not [name for name in installed if name.startswith("kernels/")]
