"""Kernels of `neighbours`: kd-trees that lie implicitly in an array of points, and searches through a forest of them.

A tree is a range [a, b) of the array: the point in its middle splits it, along the axis of the widest spread, into the
ranges before and after; ranges of LEAF points or fewer are not split. The box around a range is kept at its middle:
points of a planning tree fill a thin part of their space, which boxes show and splitting planes do not. Equal
distances are decided by the lower id, so that an answer does not depend on how the points are arranged.
"""

import numpy as np

from molsamp.engine.compiling import entries, kernel

LEAF = 8
STACK = 128

entry = entries(__file__)


@kernel
def swap(points, ids, i, j):
    ids[i], ids[j] = ids[j], ids[i]
    for c in range(points.shape[1]):
        points[i, c], points[j, c] = points[j, c], points[i, c]


@kernel
def enclose(points, a, b, box):
    """The box around points a..b, and the axis along which it is widest."""
    axis, spread = 0, -1.0
    for c in range(points.shape[1]):
        low = high = points[a, c]
        for i in range(a + 1, b):
            low, high = min(low, points[i, c]), max(high, points[i, c])
        box[0, c], box[1, c] = low, high
        if high - low > spread:
            axis, spread = c, high - low
    return axis


@kernel
def split(points, ids, a, b, mid, axis):
    """Rearranges points a..b so that those before `mid` are not above it along the axis, those after not below."""
    low, high = a, b - 1
    while low < high:
        pivot = points[(low + high) // 2, axis]
        i, j = low, high
        while i <= j:
            while points[i, axis] < pivot:
                i += 1
            while points[j, axis] > pivot:
                j -= 1
            if i <= j:
                swap(points, ids, i, j)
                i, j = i + 1, j - 1
        if mid <= j:
            high = j
        elif mid >= i:
            low = i
        else:
            break


@entry
def build(points, ids, boxes, a, b):
    """Makes a tree of points a..b."""
    stack = np.empty((STACK, 2), np.int64)
    stack[0, 0], stack[0, 1], top = a, b, 1
    while top:
        top -= 1
        low, high = stack[top]
        mid = (low + high) // 2
        axis = enclose(points, low, high, boxes[mid])
        if high - low > LEAF:
            split(points, ids, low, high, mid, axis)
            stack[top, 0], stack[top, 1] = low, mid
            stack[top + 1, 0], stack[top + 1, 1] = mid + 1, high
            top += 2


@kernel
def square(points, i, q):
    d = 0.0
    for c in range(len(q)):
        d += (points[i, c] - q[c]) ** 2
    return d


@kernel
def outside(box, q):
    """Squared distance from q to a box."""
    d = 0.0
    for c in range(len(q)):
        d += max(box[0, c] - q[c], q[c] - box[1, c], 0.0) ** 2
    return d


@kernel
def offer(d, id, best, found):
    """Inserts a candidate into the k best, sorted by (distance, id)."""
    k = len(best)
    if d > best[k - 1] or (d == best[k - 1] and id > found[k - 1]):
        return
    j = k - 1
    while j > 0 and (d < best[j - 1] or (d == best[j - 1] and id < found[j - 1])):
        best[j], found[j] = best[j - 1], found[j - 1]
        j -= 1
    best[j], found[j] = d, id


@kernel
def consider(points, ids, i, q, alive, near, cost, best, found, least):
    """One point: into the k best, or, if within `near`, against the cheapest there. least = [cost, id]."""
    id = ids[i]
    if not alive[id]:
        return
    d = square(points, i, q)
    if d > near:
        offer(d, id, best, found)
    elif cost[id] < least[0] or (cost[id] == least[0] and id < least[1]):
        least[0], least[1] = cost[id], id


@entry
def search(points, ids, boxes, blocks, size, alive, queries, near, cost, best, found):
    """The k nearest points (best: squared distances, found: ids) of each query.

    With near >= 0, a squared distance, instead the cheapest point within it, and the nearest where there is none
    (k = 1). Trees lie between successive `blocks`; the points from the last block to `size` lie loose.
    """
    stack, bounds, least = np.empty((STACK, 2), np.int64), np.empty(STACK), np.empty(2)
    for m in range(len(queries)):
        q = queries[m]
        best[m], found[m] = np.inf, np.iinfo(np.int64).max
        least[0], least[1] = np.inf, np.inf
        for i in range(blocks[-1], size):
            consider(points, ids, i, q, alive, near, cost, best[m], found[m], least)
        for t in range(len(blocks) - 1):
            stack[0, 0], stack[0, 1], top = blocks[t], blocks[t + 1], 1
            bounds[0] = outside(boxes[(blocks[t] + blocks[t + 1]) // 2], q)
            while top:
                top -= 1
                if bounds[top] > (near if least[0] < np.inf else best[m, -1]):
                    continue
                low, high = stack[top]
                if high - low <= LEAF:
                    for i in range(low, high):
                        consider(points, ids, i, q, alive, near, cost, best[m], found[m], least)
                    continue
                mid = (low + high) // 2
                consider(points, ids, mid, q, alive, near, cost, best[m], found[m], least)
                before, after = outside(boxes[(low + mid) // 2], q), outside(boxes[(mid + 1 + high) // 2], q)
                first = int(before > after)  # the nearer half comes last onto the stack, and first off it
                stack[top + 1 - first, 0], stack[top + 1 - first, 1], bounds[top + 1 - first] = low, mid, before
                stack[top + first, 0], stack[top + first, 1], bounds[top + first] = mid + 1, high, after
                top += 2
        if least[0] < np.inf:
            found[m, 0] = np.int64(least[1])
