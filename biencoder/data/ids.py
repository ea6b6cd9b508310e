"""Whole numbers that name things: texts by their id, samples, rows and groups by their position."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
