"""Runs PTX on the CPU: all threads of all blocks in NumPy arrays, one instruction at a time.

It knows the instructions that `runtime/kernels/sampling.cu` compiles to and refuses every other one. Threads that
diverged go on from the lowest basic block, which brings them together again in structured code. What running in
lockstep would hide is checked: `ptx_memory` finds races in shared memory and bad addresses, and an instruction that
works on a whole warp must find the whole warp there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

WARP = 32
Array = NDArray[Any]
Registers = dict[str, Array]
CONTAINERS = {"pred": "bool", "b16": "uint16", "b32": "uint32", "b64": "uint64", "f32": "float32"}


class PtxError(Exception):
    """PTX this machine does not know, or that does what must not happen on a GPU."""


def dtype_of(kind: str) -> np.dtype[Any]:
    """NumPy's type for `s32`, `u64`, `b32`, `f32`, `pred`."""
    if kind == "pred":
        return np.dtype(bool)
    return np.dtype({"s": "int", "u": "uint", "b": "uint", "f": "float"}[kind[0]] + kind[1:])


@dataclass(frozen=True)
class Instruction:
    """One statement: `@%p1 add.s32 %r1, %r2, 3;`."""

    opcode: str
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False


@dataclass
class Kernel:
    """An entry function: its basic blocks, each ending with the one instruction that may leave it."""

    name: str
    parameters: list[tuple[str, str]]
    threads: int
    registers: dict[str, str] = field(default_factory=dict)  # prefix -> container
    shared: dict[str, int] = field(default_factory=dict)  # symbol -> offset
    shared_bytes: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    blocks: list[list[Instruction]] = field(default_factory=list)


def parse_module(text: str) -> dict[str, Kernel]:
    """The entry functions of a module, by name."""
    text = re.sub(r"//[^\n]*", "", text)
    entry = r"\.visible \.entry (\w+)\((.*?)\)\s*\.maxntid (\d+), 1, 1\s*\{(.*?)\n\}"
    return {match[1]: _parse_kernel(*match.groups()) for match in re.finditer(entry, text, re.DOTALL)}


def _parse_kernel(name: str, parameters: str, threads: str, body: str) -> Kernel:
    named = [(kind, symbol) for kind, symbol in re.findall(r"\.param \.(\w+) (\w+)", parameters)]
    kernel = Kernel(name, [(symbol, kind) for kind, symbol in named], int(threads))
    current: list[Instruction] = []
    kernel.blocks.append(current)
    for statement in re.findall(r"\$\w+:|[^;\s][^;]*;", body):
        statement = statement.strip().rstrip(";")
        if statement.startswith("$") and statement.endswith(":"):
            current = []
            kernel.labels[statement[:-1]] = len(kernel.blocks)
            kernel.blocks.append(current)
        elif statement.startswith("."):
            _declare(kernel, statement)
        else:
            current.append(_parse_instruction(statement))
            if current[-1].opcode in ("bra", "bra.uni", "ret", "bar.sync"):
                current = []
                kernel.blocks.append(current)
    return kernel


def _declare(kernel: Kernel, statement: str) -> None:
    if register := re.fullmatch(r"\.reg \.(\w+)\s+(%\w+)<\d+>", statement):
        kernel.registers[register[2]] = CONTAINERS[register[1]]
    elif shared := re.fullmatch(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", statement):
        align = int(shared[1])
        offset = -(-kernel.shared_bytes // align) * align
        kernel.shared[shared[2]] = offset
        kernel.shared_bytes = offset + int(shared[3])
    elif not statement.startswith(".pragma"):
        raise PtxError(f"unknown declaration: {statement}")


def _parse_instruction(statement: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([\w.]+)\s*(.*)", statement, re.DOTALL)
    if match is None:
        raise PtxError(f"unknown statement: {statement}")
    operands = tuple(part.strip() for part in re.findall(r"\{[^}]*\}|[^,{}]+", match[4]) if part.strip())
    return Instruction(match[3], operands, match[2] or "", match[1] == "!")


class Machine:
    """One launch: the registers and the place of every thread."""

    def __init__(
        self, kernel: Kernel, grid: tuple[int, int, int], arguments: list[int], memory: Any, shared: Any
    ) -> None:
        """`arguments` are ints, pointers being addresses of `memory`; `shared` holds every block's shared memory."""
        self.kernel, self.memory, self.shared = kernel, memory, shared
        blocks = grid[0] * grid[1] * grid[2]
        self.count = blocks * kernel.threads
        self.block = np.arange(self.count) // kernel.threads
        self.thread = np.arange(self.count) % kernel.threads
        self.registers: Registers = {}
        self.special = {
            "%tid.x": self.thread.astype(np.uint32),
            "%ctaid.x": (self.block % grid[0]).astype(np.uint32),
            "%ctaid.y": (self.block // grid[0] % grid[1]).astype(np.uint32),
        }
        self.arguments = dict(zip((name for name, _ in kernel.parameters), arguments, strict=True))

    def container(self, register: str) -> np.dtype[Any]:
        """The type a register is declared with."""
        return np.dtype(self.kernel.registers[register.rstrip("0123456789")])

    def read(self, operand: str, kind: str) -> Any:
        """The value of an operand in every thread, or one number for all, read as `kind`."""
        dtype = dtype_of(kind)
        if operand in self.special:
            return self.special[operand]
        if operand.startswith("%"):
            value = self.registers.get(operand)
            if value is None:
                raise PtxError(f"{operand} is read before it is written")
            return value if value.dtype == dtype else value.view(dtype)
        if operand.startswith("0f"):
            return np.uint32(int(operand[2:], 16)).view(np.float32)
        if operand in self.kernel.shared:
            return np.uint64(self.kernel.shared[operand])
        number = int(operand, 0) % (1 << 8 * dtype.itemsize)
        return np.array(number, dtype=f"uint{8 * dtype.itemsize}").view(dtype)[()]

    def write(self, register: str, value: Any, active: Array) -> None:
        """Set a register where the thread takes part."""
        container = self.container(register)
        value = np.asarray(value)
        if value.dtype != container:
            # A narrower value is widened, as by ld.shared.u32 to a 64-bit register; equal widths keep their bits.
            same = value.dtype.itemsize == container.itemsize
            value = value.view(container) if same else value.astype(container)
        if active.all():
            self.registers[register] = np.broadcast_to(value, self.count)
            return
        before = self.registers.get(register)
        self.registers[register] = np.where(active, value, container.type(0) if before is None else before)

    def whole_warps(self, instruction: Instruction, active: Array) -> Array:
        """Which warps take part, (W,) bool; every one with all its lanes."""
        lanes = active.reshape(-1, WARP)
        if (lanes.any(axis=1) != lanes.all(axis=1)).any():
            raise PtxError(f"{instruction.opcode} finds part of a warp only")
        return lanes[:, 0]

    def run(self, execute: Callable[[Machine, Instruction, Array], None]) -> None:
        """Until every thread has returned."""
        done = len(self.kernel.blocks)
        place = np.zeros(self.count, dtype=np.int64)
        waiting = np.zeros(self.count, dtype=bool)
        while True:
            ready = ~waiting & (place < done)
            if not ready.any():
                if not waiting.any():
                    return
                raise PtxError("some threads wait at a barrier that the others never reach")
            here = int(place[ready].min())
            active = ready & (place == here)
            following = np.full(self.count, here + 1)
            for instruction in self.kernel.blocks[here]:
                taking = self.guarded(instruction, active)
                if instruction.opcode in ("bra", "bra.uni"):
                    following[taking] = self.kernel.labels[instruction.operands[0]]
                elif instruction.opcode == "ret":
                    following[taking] = done
                elif instruction.opcode == "bar.sync":
                    waiting |= taking
                else:
                    execute(self, instruction, taking)
            place[active] = following[active]
            self.release(waiting)

    def guarded(self, instruction: Instruction, active: Array) -> Array:
        """The threads whose predicate lets them take part."""
        if not instruction.guard:
            return active
        value = self.read(instruction.guard, "pred")
        return active & (~value if instruction.negated else value)

    def release(self, waiting: Array) -> None:
        """Let the blocks go on whose threads all wait at the barrier; a thread that returned never will."""
        arrived = waiting.reshape(-1, self.kernel.threads).all(axis=1)
        if arrived.any():
            self.shared.barrier(arrived)
            waiting[np.repeat(arrived, self.kernel.threads)] = False
