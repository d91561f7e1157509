"""Builds the emulator and prints its path; with arguments, runs Python with these arguments and the emulator.

python -m tests.cuda_emulator [ARGUMENT...]
"""

import os
import sys

from tests import cuda_emulator
from tests.cuda_emulator import build

if len(sys.argv) == 1:
    print(build.build(build.MODULE))
else:
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], os.environ | cuda_emulator.environment())
