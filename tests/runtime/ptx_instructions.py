"""What each PTX instruction does, for `ptx_machine`: only those that the sampling kernels compile to.

Rounding is spelled out: `add.rn.f32` is known, `add.f32`, which a compiler may fuse, and `fma` are not.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

WARP = 32
Array = NDArray[Any]
Execute = Callable[[Any, Any, Array], None]


def execute(machine: Any, instruction: Any, active: Array) -> None:
    """Run one instruction for the active threads."""
    with np.errstate(all="ignore"):
        _handler(instruction.opcode)(machine, instruction, active)


@functools.cache
def _handler(opcode: str) -> Execute:
    parts = opcode.split(".")
    for length in range(len(parts), 0, -1):
        make = FAMILIES.get(".".join(parts[:length]))
        if make is not None:
            return make(*parts[length:])
    raise NotImplementedError(f"PTX instruction {opcode}")


def _elementwise(function: Callable[..., Any], *, known: str) -> Callable[..., Execute]:
    """An instruction whose operands all have the type at its end, one of `known`."""

    def make(kind: str) -> Execute:
        if kind not in known.split():
            raise NotImplementedError(f"PTX type {kind}")

        def run(machine: Any, instruction: Any, active: Array) -> None:
            target, *sources = instruction.operands
            machine.write(target, function(*(machine.read(source, kind) for source in sources)), active)

        return run

    return make


COMPARE: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "leu": lambda first, second: np.logical_not(first > second),  # or unordered: NaN
}
INTEGERS = "s32 u32 b32 s64 u64 b64"


def _compare(name: str, kind: str) -> Execute:
    return _elementwise(COMPARE[name], known=f"{INTEGERS} f32")(kind)


def _select(kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, yes, no, which = instruction.operands
        chosen = np.where(machine.read(which, "pred"), machine.read(yes, kind), machine.read(no, kind))
        machine.write(target, chosen, active)

    return run


def _shift(function: Callable[..., Any]) -> Callable[..., Execute]:
    def make(kind: str) -> Execute:
        def run(machine: Any, instruction: Any, active: Array) -> None:
            target, source, by = instruction.operands
            value = machine.read(source, kind)
            bits = np.minimum(machine.read(by, "u32"), 8 * value.dtype.itemsize - 1).astype(value.dtype)
            machine.write(target, function(value, bits), active)

        return run

    return make


def _multiply_wide(kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, first, second = instruction.operands
        wide = f"{'int' if kind[0] == 's' else 'uint'}{2 * int(kind[1:])}"
        factors = (np.asarray(machine.read(source, kind)).astype(wide) for source in (first, second))
        machine.write(target, operator.mul(*factors), active)

    return run


def _divide(first: Any, second: Any) -> Any:
    quotient = np.abs(first) // np.maximum(np.abs(second), 1)
    return np.where((first < 0) != (second < 0), -quotient, quotient).astype(np.int32)


def _count_bits(value: Any) -> Any:
    octets = np.ascontiguousarray(value).view(np.uint8).reshape(-1, 4)
    return np.unpackbits(octets, axis=1).sum(axis=1).astype(np.uint32)


def _move(kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, source = instruction.operands
        if target.startswith("{"):
            value = np.ascontiguousarray(machine.read(source, "b64")).view(np.uint32).reshape(-1, 2)
            for part, name in enumerate(target.strip("{}").split(",")):
                machine.write(name.strip(), value[:, part], active)
        elif source.startswith("{"):
            low, high = (machine.read(name.strip(), "b32") for name in source.strip("{}").split(","))
            machine.write(target, np.stack([low, high], axis=-1).reshape(-1).view(np.uint64), active)
        else:
            held = machine.container(source) if source in machine.registers else None
            value = machine.read(source, kind) if held is None else machine.registers[source]
            machine.write(target, value, active)

    return run


def _convert(into: str, kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, source = instruction.operands
        value = machine.read(source, "b64" if machine.container(source).itemsize == 8 else "b32")
        signed = "int" if kind[0] == "s" else "uint"
        value = value.astype(f"uint{kind[1:]}").view(f"{signed}{kind[1:]}")
        machine.write(target, value.astype(f"{signed}{into[1:]}"), active)

    return run


def _insert_bits(kind: str) -> Execute:
    """bfi: put the low bits of the first source into the second."""

    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, field, base, start, length = instruction.operands
        mask = np.uint64(((1 << int(length)) - 1) << int(start))
        moved = machine.read(field, kind) << np.uint64(start)
        machine.write(target, (moved & mask) | (machine.read(base, kind) & ~mask), active)

    return run


def _address(machine: Any, operand: str) -> Array:
    base, _, offset = operand.strip("[]").partition("+")
    return np.broadcast_to(machine.read(base, "b64") + np.uint64(int(offset or 0) % (1 << 64)), machine.count)


def _load_parameter(kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, name = instruction.operands
        bits = 8 * machine.container(target).itemsize
        value = machine.arguments[name.strip("[]")] % (1 << bits)
        machine.write(target, np.array(value, f"uint{bits}"), active)

    return run


def _scattered(machine: Any, active: Array, found: Array) -> Array:
    values = np.zeros(machine.count, dtype=found.dtype)
    values[active] = found
    return values


def _load_global(*modifiers: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, where = instruction.operands
        found = machine.memory.load(_address(machine, where)[active], constant=modifiers[0] == "nc")
        machine.write(target, _scattered(machine, active, found), active)

    return run


def _store_global(kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        where, source = instruction.operands
        value = np.broadcast_to(machine.read(source, kind), machine.count)
        machine.memory.store(_address(machine, where)[active], value[active])

    return run


def _load_shared(kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        target, where = instruction.operands
        place = machine.block[active], machine.thread[active], _address(machine, where)[active]
        found = machine.shared.load(*place, int(kind[1:]) // 32)
        machine.write(target, _scattered(machine, active, found), active)

    return run


def _store_shared(kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        where, source = instruction.operands
        value = np.broadcast_to(machine.read(source, kind), machine.count)
        place = machine.block[active], machine.thread[active], _address(machine, where)[active]
        machine.shared.store(*place, value[active])

    return run


def _warp_barrier() -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        machine.shared.warp_barrier(machine.whole_warps(instruction, active))

    return run


def _of_warps(machine: Any, source: str, kind: str) -> Array:
    return np.broadcast_to(machine.read(source, kind), machine.count).reshape(-1, WARP)


def _check_members(machine: Any, instruction: Any, active: Array) -> None:
    machine.whole_warps(instruction, active)
    members = np.broadcast_to(machine.read(instruction.operands[-1], "u32"), machine.count)
    if (members[active] != 0xFFFFFFFF).any():
        raise NotImplementedError("a mask of fewer than 32 lanes")


def _shuffle(mode: str, _: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        _check_members(machine, instruction, active)
        target, source, by, clamp, _ = instruction.operands
        if (np.broadcast_to(machine.read(clamp, "u32"), machine.count)[active] != 31).any():
            raise NotImplementedError("a shuffle within part of a warp")
        lane, by = np.arange(WARP), _of_warps(machine, by, "u32").astype(np.int64)
        other = (lane ^ by) if mode == "bfly" else np.broadcast_to(by, by.shape) % WARP
        value = np.take_along_axis(_of_warps(machine, source, "b32"), other, axis=1)
        machine.write(target.partition("|")[0], value.reshape(-1), active)

    return run


def _vote(mode: str, _: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        _check_members(machine, instruction, active)
        target, source, _ = instruction.operands
        votes = _of_warps(machine, source, "pred")
        bits = (votes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(axis=1).astype(np.uint32)
        machine.write(target, np.repeat(bits if mode == "ballot" else bits > 0, WARP), active)

    return run


def _reduce(mode: str, kind: str) -> Execute:
    def run(machine: Any, instruction: Any, active: Array) -> None:
        _check_members(machine, instruction, active)
        if mode != "max":
            raise NotImplementedError(f"redux.sync.{mode}")
        target, source, _ = instruction.operands
        machine.write(target, np.repeat(_of_warps(machine, source, kind).max(axis=1), WARP), active)

    return run


FAMILIES: dict[str, Callable[..., Execute]] = {
    "add": _elementwise(operator.add, known=INTEGERS),
    "sub": _elementwise(operator.sub, known=INTEGERS),
    "mul.lo": _elementwise(operator.mul, known=INTEGERS),
    "mul.wide": _multiply_wide,
    "div": _elementwise(_divide, known="s32"),
    "add.rn": _elementwise(operator.add, known="f32"),
    "sub.rn": _elementwise(operator.sub, known="f32"),
    "mul.rn": _elementwise(operator.mul, known="f32"),
    "min": _elementwise(np.fmin, known=f"{INTEGERS} f32"),
    "max": _elementwise(np.fmax, known=f"{INTEGERS} f32"),
    "and": _elementwise(operator.and_, known="b32 b64 pred"),
    "or": _elementwise(operator.or_, known="b32 b64 pred"),
    "xor": _elementwise(operator.xor, known="b32 b64 pred"),
    "not": _elementwise(np.invert, known="b32 b64 pred"),
    "popc": _elementwise(_count_bits, known="b32"),
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "bfi": _insert_bits,
    "setp": _compare,
    "selp": _select,
    "mov": _move,
    "cvt": _convert,
    "cvta.to.global": _move,
    "ld.param": _load_parameter,
    "ld.global": _load_global,
    "st.global": _store_global,
    "ld.shared": _load_shared,
    "st.shared": _store_shared,
    "bar.warp.sync": _warp_barrier,
    "shfl.sync": _shuffle,
    "vote.sync": _vote,
    "redux.sync": _reduce,
}
