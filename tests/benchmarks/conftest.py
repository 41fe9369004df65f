"""The scripts of benchmarks/ are no package; appended, so that they hide nothing."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
