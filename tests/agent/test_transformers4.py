"""The ledger with the other major version of transformers: the installed one is what every other test runs with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atroposlib")

ROOT = Path(__file__).parent.parent.parent
OTHER = "transformers==4.57.6"


@pytest.mark.slow
def test_the_ledger_is_exact_with_transformers_4_too(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), "--no-compile"]
    # --no-deps: of its dependencies only these two differ from those of version 5.
    install = [*pip, "--no-deps", OTHER, "tokenizers==0.22.1", "huggingface-hub==0.36.0"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"{OTHER} can't be installed here: {done.stderr.strip().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    tests = [str(ROOT / "tests" / "agent" / name) for name in ("test_ledger.py", "test_render.py", "test_scripted.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    version = "import transformers; assert transformers.__version__.startswith('4.'), transformers.__version__"
    subprocess.run([sys.executable, "-c", version], env=environment, check=True)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
