"""Sixteen numbers in float32 at once, for functions that numba compiles.

LLVM makes of them what the processor has: one AVX-512 register, two of AVX2, four of NEON. Loops
over single numbers it would have to turn into such by itself, behind a test of each pair of arrays
for overlap; on a page's few keys that takes several times as long as the sums.

`+`, `-`, `*` are by number; what is multiplied and added is rounded once, and in any order.
numba's cache of compiled code on disk does not see a change of this file: see `COMPILED_OF` of
page_rows.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

WIDTH = 16
FAST = ("reassoc", "contract", "nsz", "arcp", "nnan")  # as numba's own fastmath, for single sums

_float = ir.FloatType()
_whole = ir.VectorType(ir.IntType(32), WIDTH)
_vector = ir.VectorType(_float, WIDTH)


class Lanes(types.Type):
    """The type of sixteen numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{WIDTH}")


LANES = Lanes()


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes):
        super().__init__(manager, kind, _vector)


def _by_number(instruction: str) -> Callable[..., Any]:
    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        return getattr(builder, instruction)(*args, flags=FAST)

    return code


for _operator, _instruction in (
    (operator.add, "fadd"), (operator.iadd, "fadd"),
    (operator.sub, "fsub"), (operator.mul, "fmul"),
):  # fmt: skip
    _cases = {"cases": [signature(LANES, LANES, LANES)]}
    infer_global(_operator)(type(_instruction, (ConcreteTemplate,), _cases))
    lower_builtin(_operator, LANES, LANES)(_by_number(_instruction))


def _call(builder: Any, name: str, result: Any, args: Sequence[Any]) -> Any:
    """A call of one of LLVM's own functions on sixteen numbers."""
    kind = ir.FunctionType(result, [one.type for one in args])
    name = f"llvm.{name}.v{WIDTH}f32"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, name), args, fastmath=FAST
    )


def _at(context: Any, builder: Any, kind: Any, array: Any, number: Any) -> Any:
    """Where sixteen numbers of an array begin."""
    first = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(first, [number]), _vector.as_pointer())


def _contiguous(array: Any) -> bool:
    return isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.float32


@intrinsic
def load(typing: Any, array: Any, number: Any) -> Any:
    """Sixteen numbers of a contiguous array in float32, from the one of that number on.

    Numbers are counted through all dimensions. Whether they are there is not looked at.
    """

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        found = builder.load(_at(context, builder, kinds.args[0], *args))
        found.align = 4
        return found

    return (LANES(array, types.intp), code) if _contiguous(array) else None


@intrinsic
def store(typing: Any, array: Any, number: Any, lanes: Any) -> Any:
    """Put sixteen numbers where `load` finds them."""

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        place = _at(context, builder, kinds.args[0], *args[:2])
        builder.store(args[2], place).align = 4
        return context.get_dummy_value()

    return (types.void(array, types.intp, LANES), code) if _contiguous(array) else None


@intrinsic
def all_of(typing: Any, x: Any) -> Any:
    """One number sixteen times."""

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        none, first = ir.Constant(_vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        one = builder.insert_element(none, args[0], first)
        return builder.shuffle_vector(one, none, ir.Constant(_whole, [0] * WIDTH))

    return LANES(types.float32), code


def _of_two(name: str) -> Any:
    @intrinsic
    def larger_or_smaller(typing: Any, one: Any, other: Any) -> Any:
        def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
            return _call(builder, name, _vector, args)

        return LANES(LANES, LANES), code

    return larger_or_smaller


larger, smaller = _of_two("maxnum"), _of_two("minnum")


@intrinsic
def floor(typing: Any, x: Any) -> Any:
    """The whole number below each."""

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        return _call(builder, "floor", _vector, args)

    return LANES(LANES), code


@intrinsic
def power_of_two(typing: Any, x: Any) -> Any:
    """2^x for whole numbers from -126 to 127."""

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        whole = builder.fptosi(args[0], _whole)
        exponent = builder.add(whole, ir.Constant(_whole, [127] * WIDTH))
        return builder.bitcast(builder.shl(exponent, ir.Constant(_whole, [23] * WIDTH)), _vector)

    return LANES(LANES), code


@intrinsic
def where_above_zero(typing: Any, x: Any, one: Any, other: Any) -> Any:
    """`one` where x > 0, and `other` elsewhere."""

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        zero = ir.Constant(_vector, [0.0] * WIDTH)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), *args[1:])

    return LANES(LANES, LANES, LANES), code


@intrinsic
def total(typing: Any, x: Any) -> Any:
    """The sum of the sixteen."""

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        return _call(builder, "vector.reduce.fadd", _float, [ir.Constant(_float, 0.0), *args])

    return types.float32(LANES), code


@intrinsic
def largest(typing: Any, x: Any) -> Any:
    """The largest of the sixteen."""

    def code(context: Any, builder: Any, kinds: Any, args: Sequence[Any]) -> Any:
        return _call(builder, "vector.reduce.fmax", _float, args)

    return types.float32(LANES), code
