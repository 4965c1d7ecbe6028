"""Makes `pyengine.kernels` importable where the package is not installed: on a machine lent for minutes.

There is nothing to install then: the modules are compiled inside the checkout (the CPU's, which the package will not
start without, for any x86-64, and the CUDA kernels where nvcc is), and kernels/ is mapped to its name.
"""

import os
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KERNELS = ROOT / "kernels"


def build() -> None:
    """Compile what is missing; nothing to do where the package is installed."""
    if not find_spec("pyengine.kernels"):
        environment = {"PYENGINE_BUILD_ISA": "base", **os.environ}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)


def map_kernels() -> None:
    """Let `import pyengine.kernels` find kernels/ of this checkout, unless the package is installed."""
    if find_spec("pyengine.kernels"):
        return
    spec = spec_from_file_location(
        "pyengine.kernels", KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)]
    )
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules["pyengine.kernels"] = module
    spec.loader.exec_module(module)
    import pyengine

    pyengine.kernels = module  # type: ignore[attr-defined]
