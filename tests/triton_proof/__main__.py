"""Compile every launch for every architecture: compare with the golden file, or write it. See the package."""

import argparse
import sys

from tests.triton_proof import CAPABILITIES, golden, golden_path, inspect, write
from tests.triton_proof.calls import cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.triton_proof", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the golden file")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--arch", type=int, choices=CAPABILITIES, help="this architecture alone")
    arguments = parser.parse_args()
    capabilities = (arguments.arch,) if arguments.arch else CAPABILITIES
    if arguments.write and arguments.arch:
        parser.error("--write takes all architectures")
    known, results, differing = golden(), {}, 0
    for name, launch in cases().items():
        if arguments.only not in name:
            continue
        results[name] = {f"sm_{capability}": inspect(launch, capability) for capability in capabilities}
        for sm, counts in results[name].items():
            same = known.get(name, {}).get(sm) == counts
            differing += not same
            print(f"{name:60s} {sm:6s} {' ' if same else '*'} {counts}", flush=True)
    if arguments.write:
        write((known if arguments.only else {}) | results)
        print(f"wrote {golden_path()}")
        return 0
    print(f"{differing} differ from {golden_path().name}" if differing else "all as in the golden file")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
