"""SIMD vectors as numba values: sixteen float32 or eight float64 replicas side by side.

A `Vector` is an LLVM vector, so an expression on it is packed code by construction, for whatever instruction set the
machine has. Loops over lanes written in Python are not: LLVM cannot prove that two rows of an array are distinct.

Rounding may be rearranged (contract, reassoc, nsz, arcp) but NaN and infinity are never assumed away: a lane that goes
wrong is seen to, and no other lane is touched.
"""

import math
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, overload, register_model, type_callable

FAST = ("contract", "reassoc", "nsz", "arcp")


class Vector(types.Type):
    """`lanes` values of a scalar numba type, side by side."""

    def __init__(self, scalar: types.Type, lanes: int):
        self.scalar, self.lanes = scalar, lanes
        super().__init__(name=f"{scalar}x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.boolean: ir.IntType(1)}
        bits = element.get(vector.scalar) or ir.IntType(vector.scalar.bitwidth)
        super().__init__(manager, vector, ir.VectorType(bits, vector.lanes))


F32, F64 = Vector(types.float32, 16), Vector(types.float64, 8)
"""The two kinds of real lanes; W = 16 and 8 everywhere, since the width decides the last bit of a quotient."""
LANES = {types.float32: F32, types.float64: F64}
BITS = {F32: Vector(types.uint32, 16), F64: Vector(types.uint64, 8)}  # integers as wide as the reals
WORDS = {F32: BITS[F32], F64: Vector(types.uint32, 8)}  # 32-bit words, one a lane
MASK = {16: Vector(types.boolean, 16), 8: Vector(types.boolean, 8)}


def _real(t) -> bool:
    return isinstance(t, Vector) and t.scalar in LANES


def _whole(t) -> bool:
    return isinstance(t, Vector) and isinstance(t.scalar, types.Integer)


# ---- arithmetic between vectors and with scalars, which are spread over the lanes ----


def _spread(context, builder, value, scalar, vector):
    """A scalar in every lane, cast to the vector's element."""
    value = context.cast(builder, value, scalar, vector.scalar)
    kind = context.get_value_type(vector)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    first = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), first)


def _binary(function, build_real, build_whole=None, result=lambda v: v):
    """Types and lowers one operator; the builders take (builder, x, y)."""

    @type_callable(function)
    def typing(context):
        def typer(a, b):
            vector = a if isinstance(a, Vector) else b
            if not isinstance(vector, Vector):
                return None
            other = b if vector is a else a
            build = build_real if _real(vector) else build_whole
            if build and (other == vector or isinstance(other, types.Number)):
                return result(vector)
            return None

        return typer

    def lower(context, builder, signature, arguments):
        vector = next(t for t in signature.args if isinstance(t, Vector))
        a, b = (
            v if t == vector else _spread(context, builder, v, t, vector)
            for v, t in zip(arguments, signature.args, strict=True)
        )
        return (build_real if _real(vector) else build_whole)(builder, a, b)

    for arguments in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *arguments)(lower)


def _mask(v):
    return MASK[v.lanes]


for add in (operator.add, operator.iadd):
    _binary(add, lambda b, x, y: b.fadd(x, y, flags=FAST), lambda b, x, y: b.add(x, y))
for sub in (operator.sub, operator.isub):
    _binary(sub, lambda b, x, y: b.fsub(x, y, flags=FAST), lambda b, x, y: b.sub(x, y))
for mul in (operator.mul, operator.imul):
    _binary(mul, lambda b, x, y: b.fmul(x, y, flags=FAST), lambda b, x, y: b.mul(x, y))
_binary(operator.truediv, lambda b, x, y: b.fdiv(x, y, flags=FAST))
_binary(operator.xor, None, lambda b, x, y: b.xor(x, y))
_binary(operator.or_, None, lambda b, x, y: b.or_(x, y))
_binary(operator.and_, None, lambda b, x, y: b.and_(x, y))
_binary(operator.lshift, None, lambda b, x, y: b.shl(x, y))
_binary(operator.rshift, None, lambda b, x, y: b.lshr(x, y))
_binary(operator.lt, lambda b, x, y: b.fcmp_ordered("<", x, y), lambda b, x, y: b.icmp_unsigned("<", x, y), _mask)
_binary(operator.gt, lambda b, x, y: b.fcmp_ordered(">", x, y), lambda b, x, y: b.icmp_unsigned(">", x, y), _mask)


@type_callable(operator.neg)
def _type_neg(context):
    return lambda v: v if _real(v) else None


@lower_builtin(operator.neg, Vector)
def _neg(context, builder, signature, arguments):
    return builder.fneg(arguments[0], flags=FAST)


# ---- memory ----


def _place(context, builder, signature, arguments):
    """Address of element `offset` of a contiguous array; no bounds check."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    offset = context.cast(builder, arguments[1], signature.args[1], types.intp)
    return builder.gep(array.data, [offset])


@intrinsic
def load(typingctx, array, offset):
    """The vector at array[offset:]."""
    vector = LANES[array.dtype]

    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        place = builder.bitcast(_place(context, builder, signature, arguments), kind.as_pointer())
        return _set_align(builder.load(place), context, array)

    return vector(array, offset), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """array[offset:] <- vector."""

    def codegen(context, builder, signature, arguments):
        place = builder.bitcast(_place(context, builder, signature, arguments), arguments[2].type.as_pointer())
        _set_align(builder.store(arguments[2], place), context, array)
        return context.get_dummy_value()

    return types.void(array, offset, value), codegen


def _set_align(instruction, context, array):
    instruction.align = array.dtype.bitwidth // 8
    return instruction


@intrinsic
def words(typingctx, array, offset, like):
    """Whole numbers array[offset:], one a lane of `like`, as 32-bit words."""
    vector = WORDS[like]

    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        place = builder.bitcast(_place(context, builder, signature, arguments), kind.as_pointer())
        return _set_align(builder.load(place), context, array)

    return vector(array, offset, like), codegen


# ---- functions of one vector, and between kinds ----


def _unary(name, result, build):
    def typed(typingctx, v):
        out = result(v)

        def codegen(context, builder, signature, arguments):
            return build(context, builder, arguments[0], v, context.get_value_type(out))

        return out(v), codegen

    typed.__name__ = name
    return intrinsic(typed)


def _llvm(name):
    def build(context, builder, value, vector, kind):
        suffix = f"v{vector.lanes}f{vector.scalar.bitwidth}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.{name}.{suffix}"
        )
        return builder.call(function, [value], fastmath=FAST)

    return build


sqrt = _unary("sqrt", lambda v: v, _llvm("sqrt"))
fabs = _unary("fabs", lambda v: v, _llvm("fabs"))
rint = _unary("rint", lambda v: v, _llvm("rint"))
to_bits = _unary("to_bits", lambda v: BITS[v], lambda c, b, x, v, kind: b.bitcast(x, kind))
from_bits32 = _unary("from_bits32", lambda v: F32, lambda c, b, x, v, kind: b.bitcast(x, kind))
from_bits64 = _unary("from_bits64", lambda v: F64, lambda c, b, x, v, kind: b.bitcast(x, kind))
widen = _unary("widen", lambda v: Vector(types.uint64, v.lanes), lambda c, b, x, v, kind: b.zext(x, kind))
narrow = _unary("narrow", lambda v: Vector(types.uint32, v.lanes), lambda c, b, x, v, kind: b.trunc(x, kind))


to_real = _unary(
    "to_real",
    lambda v: F32 if v.lanes == 16 else F64,
    lambda c, b, x, v, kind: b.uitofp(x, kind),
)
"""Whole numbers as reals, rounded to nearest."""


@intrinsic
def select(typingctx, mask, a, b):
    """Lane by lane a where the mask holds, else b."""
    return a(mask, a, b), lambda context, builder, signature, v: builder.select(*v)


@intrinsic
def full(typingctx, like, value):
    """A scalar in every lane of a vector like `like`."""

    def codegen(context, builder, signature, arguments):
        return _spread(context, builder, arguments[1], value, like)

    return like(like, value), codegen


@intrinsic
def full_word(typingctx, like, value):
    """A whole number in every lane of the words that go with `like`."""

    def codegen(context, builder, signature, arguments):
        return _spread(context, builder, arguments[1], value, WORDS[like])

    return WORDS[like](like, value), codegen


@intrinsic
def any_lane(typingctx, mask):
    """Whether the mask holds in some lane."""

    def codegen(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


@intrinsic
def all_lanes(typingctx, mask):
    """Whether the mask holds in every lane."""

    def codegen(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, -1))

    return types.boolean(mask), codegen


# ---- elementary functions: range reduction and Taylor series, to the precision of the lanes ----

_FACTORIAL = [1.0 / math.factorial(n) for n in range(20)]
_EXP32, _EXP64 = tuple(_FACTORIAL[7::-1]), tuple(_FACTORIAL[13::-1])
_SIN32, _SIN64 = (tuple((-1) ** k * _FACTORIAL[2 * k + 1] for k in range(n, -1, -1)) for n in (4, 7))
_COS32, _COS64 = (tuple((-1) ** k * _FACTORIAL[2 * k] for k in range(n, -1, -1)) for n in (5, 8))
_ATANH32, _ATANH64 = (tuple(2.0 / (2 * k + 1) for k in range(n, -1, -1)) for n in (4, 10))
# Abramowitz and Stegun 4.4.49: arctan t / t on [0, 1] in powers of t^2, error 2e-8
_ARCTAN = (0.0028662257, -0.0161657367, 0.0429096138, -0.0752896400, 0.1065626393, -0.1420889944, 0.1999355085,
           -0.3333314528, 1.0)  # fmt: skip
# ln 2 split so that a small whole multiple of the head is exact
_LN2_32, _LN2_64 = (0.693359375, -2.12194440e-4), (0.6931471803691238, 1.9082149292705877e-10)


@intrinsic
def polynomial(typingctx, v, coefficients):
    """Horner's rule, highest power first, unrolled."""
    from numba.core.errors import TypingError

    if not isinstance(coefficients, types.UniTuple):
        raise TypingError("polynomial takes a tuple of floats")

    def codegen(context, builder, signature, arguments):
        out = None
        for c in cgutils.unpack_tuple(builder, arguments[1]):
            c = _spread(context, builder, c, types.float64, v)
            out = c if out is None else builder.fadd(builder.fmul(out, arguments[0], flags=FAST), c, flags=FAST)
        return out

    return v(v, coefficients), codegen


def maximum(a, b):
    """The larger, lane by lane; b where a is NaN."""


@overload(maximum)
def _maximum(a, b):
    return lambda a, b: select(a > b, a, b)


def exp(v):
    """e^v for |v| < 80: 2^k times the series of the rest."""


@overload(exp)
def _exp(v):
    if v == F32:

        def exp32(v):
            t = v * 1.4426950408889634
            k = rint(t)
            r = (v - k * _LN2_32[0]) - k * _LN2_32[1]
            return polynomial(r, _EXP32) * from_bits32((to_bits(k + 12582912.0) << 23) + 0x3F800000)

        return exp32

    def exp64(v):
        k = rint(v * 1.4426950408889634)
        r = (v - k * _LN2_64[0]) - k * _LN2_64[1]
        return polynomial(r, _EXP64) * from_bits64((to_bits(k + 6755399441055744.0) << 52) + 0x3FF0000000000000)

    return exp64


def log(v):
    """ln v of positive normal numbers: v = 2^k m, sqrt(1/2) < m < sqrt(2), ln m = 2 artanh((m - 1)/(m + 1))."""


@overload(log)
def _log(v):
    if v == F32:

        def log32(v):
            bits = to_bits(v)
            k = from_bits32((bits >> 23) | 0x4B000000) - 8388735.0
            m = from_bits32((bits & 0x007FFFFF) | 0x3F800000)
            big = m > 1.4142135623730951
            m, k = select(big, m * 0.5, m), select(big, k + 1.0, k)
            s = (m - 1.0) / (m + 1.0)
            return k * _LN2_32[0] + (s * polynomial(s * s, _ATANH32) + k * _LN2_32[1])

        return log32

    def log64(v):
        bits = to_bits(v)
        k = from_bits64((bits >> 52) | 0x4330000000000000) - 4503599627371519.0
        m = from_bits64((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000)
        big = m > 1.4142135623730951
        m, k = select(big, m * 0.5, m), select(big, k + 1.0, k)
        s = (m - 1.0) / (m + 1.0)
        return k * _LN2_64[0] + (s * polynomial(s * s, _ATANH64) + k * _LN2_64[1])

    return log64


def sincos_turns(u):
    """(sin 2 pi u, cos 2 pi u) for |u| below some hundreds: u = q/4 + r, |r| <= 1/8, the subtraction exact."""


@overload(sincos_turns)
def _sincos_turns(u):
    sine, cosine = (_SIN32, _COS32) if u == F32 else (_SIN64, _COS64)

    def impl(u):
        q = rint(u * 4.0)
        r = (u - q * 0.25) * 6.283185307179586
        s, c = r * polynomial(r * r, sine), polynomial(r * r, cosine)
        odd = fabs(q - 2.0 * rint(q * 0.5)) > 0.5
        s, c = select(odd, c, s), select(odd, s, c)
        half = q - 4.0 * rint(q * 0.25)  # -2, -1, 0, 1, 2
        return select(fabs(half - 0.5) > 1.25, -s, s), select(fabs(half + 0.5) > 1.25, -c, c)

    return impl


def atan2(y, x):
    """The angle of (x, y) in (-pi, pi], for (x, y) not both 0.

    A polynomial guess of 2e-8; float64 lanes add one correction theta += (y cos theta - x sin theta) / |(x, y)|,
    which is cubically convergent.
    """


@overload(atan2)
def _atan2(y, x):
    fine = y == F64

    def atan2_(y, x):
        a, b = fabs(x), fabs(y)
        steep = b > a
        t = select(steep, a, b) / select(steep, b, a)
        t = t * polynomial(t * t, _ARCTAN)
        t = select(steep, 1.5707963267948966 - t, t)
        t = select(x < 0.0, 3.141592653589793 - t, t)
        t = select(y < 0.0, -t, t)
        if fine:
            s, c = sincos_turns(t * 0.15915494309189535)
            t = t + (y * c - x * s) / sqrt(x * x + y * y)
        return t

    return atan2_
