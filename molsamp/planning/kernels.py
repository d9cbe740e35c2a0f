"""Motion of a batch of vehicles with the collision check inside, as numba kernels in float64.

Every control is the rate of one actuator state. Within a step of dt the rate is constant, reduced where the actuator
would leave its bounds, so that motion within a step is smooth and classical Runge-Kutta of fourth order is true to it.

A vehicle is a set of discs; disc = (index of the heading it follows or -1, offset along it, radius). Walls are grid
cells; everything outside the grid is wall. pose = (x, y of the grid's corner, cos, sin of its angle, cell).
"""

import math

import numpy as np

from molsamp.engine.compiling import entries, kernel

CAR, UNICYCLE, TRAILER, INTEGRATOR = range(4)
RAN, HIT, REACHED, DIVERGED = range(4)
GAP = 0.2  # between checked centres, in disc radii
TURN = 1.1  # an arc is at most this much longer than its chord, for turns below 1.4 rad a step
NEWTON = 4  # iterations: enough for rounding
FAR = 1e9  # m, rad: beyond it, or not a number, a state has diverged

entry = entries(__file__)


@kernel
def derivative(kind, p, s, u, out):
    """s' = f(s, u), all but the actuator states."""
    if kind == CAR:
        m, C1, C2, Cm1, Cm2, Cr0, Cr2 = p
        psi, v, D, delta = s[2], s[3], s[4], s[5]
        force = (Cm1 - Cm2 * v) * D - Cr2 * v * v - Cr0 * math.tanh(5.0 * v)
        out[0] = v * math.cos(psi + C1 * delta)
        out[1] = v * math.sin(psi + C1 * delta)
        out[2] = v * C2 * delta
        out[3] = force / m * math.cos(C1 * delta)
        out[4], out[5] = u[0], u[1]
    elif kind == UNICYCLE:
        out[0], out[1], out[2] = s[3] * math.cos(s[2]), s[3] * math.sin(s[2]), s[4]
        out[3], out[4] = u[0], u[1]
    elif kind == TRAILER:
        wheelbase, hitch = p
        out[0], out[1] = s[3] * math.cos(s[2]), s[3] * math.sin(s[2])
        out[2] = s[3] / wheelbase * math.tan(s[4])
        out[5] = s[3] / hitch * math.sin(s[2] - s[5])
        out[3], out[4] = u[0], u[1]
    else:
        out[0], out[1], out[2], out[3] = s[2], s[3], u[0], u[1]


@kernel
def runge_kutta(kind, p, s, u, h, k, out):
    """One step of the classical fourth-order method; k is scratch, (6, S)."""
    S = len(s)
    derivative(kind, p, s, u, k[0])
    for j in range(1, 4):
        c = h if j == 3 else 0.5 * h
        for i in range(S):
            k[4, i] = s[i] + c * k[j - 1, i]
        derivative(kind, p, k[4], u, k[j])
    for i in range(S):
        out[i] = s[i] + h / 6.0 * (k[0, i] + 2.0 * k[1, i] + 2.0 * k[2, i] + k[3, i])


@kernel
def drive(p, s, u, dt, k, out):
    """A car over dt: it has no reverse. Brakes stop it at v = 0, where it stands until the throttle D is positive.

    Both moments are met exactly, the first by Newton's method from above, the second since D is linear in time;
    a step across them would err in the second order, and turns would carry the error on.
    """
    left, here = dt, k[5]
    out[:] = s
    while left > 0.0:
        here[:] = out
        braking = here[4] < 0.0 or (here[4] == 0.0 and u[0] <= 0.0)
        release = here[4] + left * u[0] > 0.0
        span = min(left, -here[4] / u[0]) if braking and release else left
        if braking and here[3] <= 0.0:
            out[4], out[5] = here[4] + span * u[0], here[5] + span * u[1]
        else:
            runge_kutta(CAR, p, here, u, span, k, out)
            if out[3] < 0.0:
                for _ in range(NEWTON):
                    derivative(CAR, p, out, u, k[0])
                    span = min(max(span - out[3] / k[0, 3], 0.0), left)
                    runge_kutta(CAR, p, here, u, span, k, out)
                out[3], release = 0.0, False
        if braking and release:
            out[4] = 0.0
        left -= span


@kernel
def advance(kind, p, s, control, dt, actuators, rate, low, high, u, k, out):
    """One step of dt: controls within their rates, actuators within their bounds."""
    for j in range(len(control)):
        a = actuators[j]
        end = s[a] + min(max(control[j], -rate[j]), rate[j]) * dt
        u[j] = (min(max(end, low[a]), high[a]) - s[a]) / dt
    if kind == CAR:
        drive(p, s, u, dt, k, out)
        out[3] = min(out[3], high[3])
    else:
        runge_kutta(kind, p, s, u, dt, k, out)
    for j in range(len(control)):
        a = actuators[j]
        out[a] = min(max(s[a] + u[j] * dt, low[a]), high[a])


@kernel
def clearance(blocked, cell, x, y, reach):
    """Distance from a point of the grid's frame to the nearest wall, looking `reach` cells around its own."""
    rows, columns = blocked.shape
    r, c = math.floor(y / cell), math.floor(x / cell)
    nearest = (reach * cell) ** 2
    for i in range(r - reach, r + reach + 1):
        dy = max(i * cell - y, y - (i + 1) * cell, 0.0)
        for j in range(c - reach, c + reach + 1):
            if i < 0 or j < 0 or i >= rows or j >= columns or blocked[i, j]:
                dx = max(j * cell - x, x - (j + 1) * cell, 0.0)
                nearest = min(nearest, dx * dx + dy * dy)
    return math.sqrt(nearest)


@kernel
def disc_clearance(x, y, heading, offset, blocked, pose, reach):
    """Clearance of a disc's centre."""
    x, y = x + offset * math.cos(heading) - pose[0], y + offset * math.sin(heading) - pose[1]
    return clearance(blocked, pose[4], pose[2] * x + pose[3] * y, pose[2] * y - pose[3] * x, reach)


@kernel
def look(state, disc, blocked, pose, reach):
    """Clearance of a disc of a vehicle."""
    heading = state[int(disc[0])] if disc[0] >= 0 else 0.0
    return disc_clearance(state[0], state[1], heading, disc[1], blocked, pose, reach)


@kernel
def free(a, b, before, discs, margin, blocked, pose, reach):
    """Whether the motion from state a to state b touches no wall; `before` holds the discs' clearances at a, where they
    are free, and is given those at b.

    Every point of a disc's way lies within half its length of one end, so two wide ends clear it. Otherwise discs on
    the chord are looked at, wider by the bulge of the arc and by what could hide between two of them.
    """
    chord = math.hypot(b[0] - a[0], b[1] - a[1])
    for d in range(len(discs)):
        h, offset, r = int(discs[d, 0]), discs[d, 1], discs[d, 2] + margin
        after = look(b, discs[d], blocked, pose, reach)
        room, before[d] = before[d] + after - 2.0 * r, after
        if after < r:
            return False
        ha, hb = (a[h], b[h]) if h >= 0 else (0.0, 0.0)
        length = TURN * chord + abs(offset * (hb - ha))
        if room > length:
            continue
        pieces = math.ceil(length / (GAP * discs[d, 2]))
        wide = math.hypot(r, 0.5 * length / pieces) + chord * abs(hb - ha) / 8.0
        for q in range(1, pieces):
            w = q / pieces
            x, y = a[0] + w * (b[0] - a[0]), a[1] + w * (b[1] - a[1])
            if disc_clearance(x, y, ha + w * (hb - ha), offset, blocked, pose, reach) < wide:
                return False
    return True


@kernel
def judge(a, b, before, discs, margin, blocked, pose, reach, goal):
    """The fate of a vehicle that went from a to b; goal = (x, y, radius)."""
    for i in range(len(b)):
        if not abs(b[i]) < FAR:
            return DIVERGED
    if not free(a, b, before, discs, margin, blocked, pose, reach):
        return HIT
    return REACHED if math.hypot(b[0] - goal[0], b[1] - goal[1]) < goal[2] else RAN


@entry
def propagate(kind, p, dt, actuators, rate, low, high, discs, margin, blocked, pose, reach, goal, x, u, n, fate, done):
    """x[b, 0] is given; fills x[b, 1..done[b]] under u[b, 0..n[b]), up to the first wall or the goal.

    A state that is in a wall is not counted in `done`.
    """
    k, held, before = np.empty((6, x.shape[2])), np.empty(u.shape[2]), np.empty(len(discs))
    for b in range(len(x)):
        fate[b] = RAN
        for d in range(len(discs)):
            before[d] = look(x[b, 0], discs[d], blocked, pose, reach)
        for t in range(n[b]):
            control = u[b, min(t, u.shape[1] - 1)]  # one row is one control for all steps
            advance(kind, p, x[b, t], control, dt, actuators, rate, low, high, held, k, x[b, t + 1])
            fate[b] = judge(x[b, t], x[b, t + 1], before, discs, margin, blocked, pose, reach, goal)
            done[b] += fate[b] == RAN or fate[b] == REACHED
            if fate[b] != RAN:
                break


@entry
def judge_states(discs, margin, blocked, pose, reach, goal, x, n, fate, done):
    """As `propagate` for given states."""
    before = np.empty(len(discs))
    for b in range(len(x)):
        fate[b] = RAN
        for d in range(len(discs)):
            before[d] = look(x[b, 0], discs[d], blocked, pose, reach)
        for t in range(n[b]):
            fate[b] = judge(x[b, t], x[b, t + 1], before, discs, margin, blocked, pose, reach, goal)
            done[b] += fate[b] == RAN or fate[b] == REACHED
            if fate[b] != RAN:
                break


@entry
def clearances(discs, blocked, pose, reach, x, out):
    """Smallest distance between a vehicle's discs and the walls; negative where they overlap."""
    for b in range(len(x)):
        out[b] = np.inf
        for d in range(len(discs)):
            out[b] = min(out[b], look(x[b], discs[d], blocked, pose, reach) - discs[d, 2])
