import subprocess
import sys

PROGRAM = """
import resource
import numpy as np
from dsmoe_jax import malloc

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        np.ones(1 << 25, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

handed_back = faults(4)
assert malloc.keep_freed()
faults(1)
print(handed_back, faults(4))
"""


def test_freed_blocks_are_used_again():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    handed_back, kept = map(int, done.stdout.split())
    # 32 MiB are 8,192 pages of 4 KiB; a kernel with huge pages everywhere takes fewer faults.
    assert handed_back > 0
    assert kept < handed_back / 10
