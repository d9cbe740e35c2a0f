"""The map that a vehicle sees around itself, as a numba kernel."""

import math

from molsamp.engine.compiling import entries

entry = entries(__file__)


@entry
def look_around(blocked, pose, x, headings, spacing, out):
    """out[b, i, j] = 1 in walls and outside the grid, -1 in the open, at the point of row i to the left of x[b] and of
    column j ahead of it, `spacing` m apart; blocked and pose as in `kernels`."""
    rows, columns = blocked.shape
    _, height, width = out.shape
    for b in range(len(x)):
        dx, dy = x[b, 0] - pose[0], x[b, 1] - pose[1]
        u, v = pose[2] * dx + pose[3] * dy, pose[2] * dy - pose[3] * dx
        c, s = math.cos(headings[b]), math.sin(headings[b])
        c, s = c * pose[2] + s * pose[3], s * pose[2] - c * pose[3]
        for i in range(height):
            left = spacing * (i - 0.5 * (height - 1))
            for j in range(width):
                ahead = spacing * (j - 0.5 * (width - 1))
                column = math.floor((u + c * ahead - s * left) / pose[4])
                row = math.floor((v + s * ahead + c * left) / pose[4])
                free = 0 <= row < rows and 0 <= column < columns and not blocked[row, column]
                out[b, i, j] = -1.0 if free else 1.0
