"""Dependencies point one way, frameworks stay in their files, and `import consort` is quick."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "consort"

# A module may import from its own layer and from those after it.
LAYERS = (
    {"cli", "doctor", "doctor_run", "preflight", "__main__"},
    {"gateway", "bench", "federated", "scheduling"},
    {"inference", "training"},
    {"models"},
    {"align"},
    {
        "config",
        "config_file",
        "config_lines",
        "config_overrides",
        "config_template",
        "config_serve",
        "telemetry",
    },
    {"problems"},
    {"types", "errors", "files", "__init__"},
)
FRAMEWORKS = {
    "torch": {"models/local.py", "models/zoo.py", "models/decoding", "training"},
    "transformers": {"models/local.py", "models/zoo.py", "models/decoding", "training"},
    "peft": {"models/local.py", "models/zoo.py", "models/decoding", "training"},
    "llama_cpp": {"models/gguf/library.py"},
    "flwr": {"federated/flower_app.py"},
    "matplotlib": {"bench/report.py", "bench/pareto.py"},
    "scipy": {"inference/gain_fit.py"},
    "sklearn": {"inference/token_fit.py"},
    "aiohttp": {"models/link.py", "models/verifier.py"},
    "httptools": {"models/connections.py"},
    "msgpack": {"models/frames.py"},
    "uvicorn": {"gateway/serve.py"},
}
IMPORT_LIMIT_S = 0.150


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file, but for what only the type checker reads."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively; write the whole name"
            yield node.module or ""
            if node.module == "consort":
                yield from (f"consort.{alias.name}" for alias in node.names)


def layer(name: str) -> int:
    for index, members in enumerate(LAYERS):
        if name in members:
            return index
    pytest.fail(f"consort.{name} stands in no layer: add it to LAYERS")


def test_every_import_points_down() -> None:
    wrong = []
    for file in modules():
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for target in imported(file):
            top, _, inner = target.partition(".")
            name = inner.partition(".")[0]
            exists = name and ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists())
            if top == "consort" and exists and layer(name) < layer(part):
                wrong.append(f"{file.relative_to(ROOT)} imports {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_is_imported_only_where_it_belongs(framework: str) -> None:
    homes = FRAMEWORKS[framework]
    wrong = [
        str(file.relative_to(ROOT))
        for file in modules()
        if framework in {name.partition(".")[0] for name in imported(file)}
        and not any(file.relative_to(PACKAGE).as_posix().startswith(home) for home in homes)
    ]
    assert not wrong, f"{framework} belongs in {sorted(homes)}, not in {wrong}"


def test_models_and_training_load_without_torch_until_it_is_used() -> None:
    code = (
        "import sys, consort.cli, consort.preflight.data, consort.models.zoo, consort.doctor;"
        "import consort.models.gguf.model, consort.models.decoding.lm;"
        "import consort.gateway.serve, consort.gateway.strategies, consort.inference.redaction;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_importing_consort_is_quick() -> None:
    """Processor time beyond the bare interpreter's, so that a loaded machine does not matter."""
    cost = statistics.median(_cpu_s("import consort") for _ in range(5))
    assert cost < IMPORT_LIMIT_S, f"import consort took {cost * 1000:.0f} ms"


def test_the_command_line_answers_before_a_framework_is_loaded() -> None:
    cost = statistics.median(_cpu_s("import consort.cli") for _ in range(5))
    assert cost < IMPORT_LIMIT_S, f"import consort.cli took {cost * 1000:.0f} ms"


def _cpu_s(statement: str) -> float:
    code = f"import time; begin = time.process_time(); {statement}; print(time.process_time() - begin)"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return float(answer.stdout)
