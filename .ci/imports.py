"""Import every module of the installed distribution; those of extras may lack only their extra's packages.

Run outside the repository: `python imports.py PATH/TO/pyproject.toml`.
"""

import importlib
import pkgutil
import sys
import tomllib
from pathlib import Path

import flowserve

EXTRAS = {
    "torch",
    "transformers",
    "faiss",
    "sentence_transformers",
    "llguidance",
    "safetensors",
    "tokenizers",
    "bs4",
    "pypdf",
    "vllm",
    "msgspec",
    "zmq",
    "langchain_core",
    "langchain_openai",
    "langgraph",
    "openai",
    "mcp",
    "llama_index",
    "agents",
}


def main(pyproject: Path) -> int:
    listed = set(tomllib.loads(pyproject.read_text())["tool"]["setuptools"]["packages"])
    names = {module.name for module in pkgutil.walk_packages(flowserve.__path__, "flowserve.")} | {"flowserve"}
    # By their files: a walk does not look into a package that cannot be imported without its extra.
    installed = Path(flowserve.__path__[0]).parent
    missing = {name for name in listed if not (installed / name.replace(".", "/") / "__init__.py").is_file()}
    failed = [f"{name}: not in the wheel" for name in sorted(missing)]
    skipped = 0
    for name in sorted(names):
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            cause = error.__cause__ or error  # a module may say in its own words which extra it needs
            lacks = cause.name if isinstance(cause, ModuleNotFoundError) else None
            if lacks and lacks.split(".")[0] in EXTRAS:
                skipped += 1
            else:
                failed.append(f"{name}: {error}")
    inside = [name for name in ("graphs", "retrieval", "cachestore") if importlib.util.find_spec(name)]
    failed += [f"{name}: is importable under its bare name" for name in inside]
    print(f"imported {len(names) - skipped} modules from {flowserve.__path__[0]}, {skipped} need an extra")
    for line in failed:
        print("FAILED", line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
