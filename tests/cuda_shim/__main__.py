import sys
from pathlib import Path

from tests.cuda_shim import build

print(build(Path(sys.argv[1]), *sys.argv[2:3]))
