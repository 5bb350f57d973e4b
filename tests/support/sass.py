"""Reads the machine code of a cubin: instructions, resources, and where loaded values go."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Opcodes that can multiply. HFMA2 and IMAD with two zero factors are how ptxas writes a constant
# or a move (`is_move`), IMAD with the factor 1 an addition (`is_addition`).
MULTIPLY = re.compile(
    r"U?(FMUL|FFMA|HMUL|HFMA|DMUL|DFMA|MUFU|IMUL|IMAD|XMAD|IDP|VMAD|\w*MMA)\w*(\.|$)"
)
# Opcodes whose register operands are all sources.
NO_REGISTER_RESULT = re.compile(
    r"U?(ISETP|FSETP|DSETP|HSETP2|PLOP3|ST|STG|STS|STL|RED|BRA|EXIT|BAR|BSSY|BSYNC|BREAK|NOP|CALL"
    r"|WARPSYNC|YIELD|MEMBAR|ERRBAR|CCTL|DEPBAR|R2P)(\.|$)"
)
JUMP = re.compile(r"(BRA|CALL|WARPSYNC)(\.|$)")
UNKNOWN_JUMP = re.compile(r"(BRX|BRXU|JMP|JMX|JMXU|RET|CALL\.ABS)(\.|$)")
LOAD = re.compile(r"(LD|LDG|LDS)(\.|$)")
ALL_PREDICATES = tuple(f"{kind}{i}" for kind in ("P", "UP") for i in range(8))
REGISTER = re.compile(r"\b(U?R)(\d+)\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "", "P0", "!P0", ...
    opcode: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{self.address:#06x}: {guard}{self.opcode} {', '.join(self.operands)}"

    @functools.cached_property
    def result(self) -> tuple[str, ...]:
        """The registers that the instruction writes."""
        if NO_REGISTER_RESULT.match(self.opcode):
            return ()
        for operand in self.operands:  # predicates that are written stand before or after
            if found := re.fullmatch(r"(U?R)(\d+)", operand):
                first = int(found[2])
                return tuple(f"{found[1]}{first + i}" for i in range(self.result_width))
            if not re.fullmatch(r"!?U?P(\d|T)", operand):
                return ()
        return ()

    @property
    def result_width(self) -> int:
        if re.search(r"\.128\b", self.opcode):
            return 4
        if re.search(r"\.(64|WIDE)\b", self.opcode) or self.opcode == "CS2R":
            return 2
        return 2 if re.match(r"D(ADD|MUL|FMA)|F(ADD|MUL|FMA)2", self.opcode) else 1

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """The registers that it reads; of a wide multiply-add, only the addend is a pair."""
        operands = [o for o in self.operands if not re.fullmatch(r"!?U?P(\d|T|R)", o)]
        if self.result:
            del operands[0]
        registers = []
        for position, operand in enumerate(operands):
            wide = ".64" in operand or (".WIDE" in self.opcode and position == 2)
            for kind, number in REGISTER.findall(operand):
                registers += [f"{kind}{int(number) + i}" for i in range(1 + wide)]
        return tuple(registers)

    @functools.cached_property
    def predicates_written(self) -> tuple[str, ...]:
        """The predicates before the first source; some of them may only be read."""
        written = []
        # The last one of a vote is what every lane brings to it.
        for operand in self.operands[:-1] if self.opcode.startswith("VOTE") else self.operands:
            if re.fullmatch(r"!?U?P(\d|T|R)", operand):
                written.append(operand.lstrip("!"))
            elif operand not in self.result[:1]:
                break
        return tuple(written) if "PR" not in written else ALL_PREDICATES

    @functools.cached_property
    def multiplies(self) -> bool:
        return bool(MULTIPLY.match(self.opcode)) and not self.is_move and not self.is_addition

    @property
    def is_move(self) -> bool:
        """Whether both factors are the zero register: the third operand is copied."""
        factors = [operand.removesuffix(".reuse").lstrip("-") for operand in self.operands[1:3]]
        return bool(re.match(r"U?(IMAD|HFMA2)", self.opcode)) and (
            factors in (["RZ", "RZ"], ["URZ", "URZ"])
        )

    @property
    def is_addition(self) -> bool:
        """Whether one factor is the constant 1: how ptxas adds integers in the other pipe."""
        return self.opcode == "IMAD.IADD" and "0x1" in self.operands[1:3]

    @property
    def target(self) -> int | None:
        last = self.operands[-1] if self.operands else ""
        return int(last, 16) if re.fullmatch(r"0x[0-9a-f]+", last) else None


def find_cuobjdump() -> str | None:
    """Returns the tool of a CUDA toolkit, or the one that Triton brings along."""
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None


def cuobjdump(option: str, cubin: Path) -> str:
    tool = find_cuobjdump()
    folder = os.path.dirname(tool)  # nvdisasm, which it calls, lies beside it
    environment = {**os.environ, "PATH": folder + os.pathsep + os.environ.get("PATH", "")}
    command = [tool, option, str(cubin)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def compile_cubin(source: Path, arch: str, cubin: Path, *options: str) -> None:
    command = ["nvcc", "-cubin", f"-arch={arch}", "-O3", "--fmad=false", "-std=c++17", *options]
    done = subprocess.run(
        [*command, str(source), "-o", str(cubin)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()


def read_functions(cubin: Path) -> dict[str, list[Instruction]]:
    """Returns the instructions of every function, by mangled name."""
    functions: dict[str, list[Instruction]] = {}
    line_pattern = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
    for line in cuobjdump("-sass", cubin).splitlines():
        if found := re.match(r"\s*Function : (\S+)", line):
            current = functions.setdefault(found[1], [])
        elif found := line_pattern.match(line):
            operands = tuple(part.strip() for part in found[4].split(",") if part.strip())
            current.append(Instruction(int(found[1], 16), found[2] or "", found[3], operands))
    return functions


def read_resources(cubin: Path) -> dict[str, dict[str, int]]:
    """Returns REG, STACK, SHARED, LOCAL, ... of every function, by mangled name."""
    text = cuobjdump("-res-usage", cubin)
    found = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", text)
    return {
        name: {key: int(value) for key, value in re.findall(r"([A-Z]+)(?:\[\d\])?:(\d+)", usage)}
        for name, usage in found
    }


def loads_before_stores(code: list[Instruction]) -> tuple[int, int]:
    """Returns how many loads from global memory come before the first store to it, and behind it.

    In the order of the code, in which a loop that is not unrolled stands once.
    """
    opcodes = [instruction.opcode.split(".")[0] for instruction in code]
    first = opcodes.index("STG")
    return opcodes[:first].count("LDG"), opcodes[first:].count("LDG")


def successors(code: list[Instruction]) -> list[list[int]]:
    """Returns, for every instruction, which ones may follow.

    Threads that meet at a BSYNC go on where the BSSY of the same barrier said. As a rule that is
    the next instruction; where it is not, every BSSY of this barrier is taken to be the one.
    """
    index = {instruction.address: i for i, instruction in enumerate(code)}
    rejoin: dict[str, set[int]] = {}
    for instruction in code:
        if instruction.opcode.startswith("BSSY"):
            rejoin.setdefault(instruction.operands[0], set()).add(index[instruction.target])
    following = []
    for i, instruction in enumerate(code):
        if UNKNOWN_JUMP.match(instruction.opcode):
            raise ValueError(f"a jump to an unknown place: {instruction}")
        after = {i + 1}
        if instruction.opcode == "EXIT" and not instruction.predicate:
            after = set()
        # WARPSYNC is followed by a place to go, or by a mask alone.
        if JUMP.match(instruction.opcode) and instruction.target in index:
            after.add(index[instruction.target])
            conditional = instruction.predicate or len(instruction.operands) > 1
            if instruction.opcode.startswith("BRA") and not conditional:
                after.discard(i + 1)
        if instruction.opcode.startswith("BSYNC") and i + 1 not in rejoin[instruction.operands[0]]:
            after |= rejoin[instruction.operands[0]]
        following.append(sorted(j for j in after if j < len(code)))
    return following


class Registers:
    """Which loads every register may hold: bit i of a number stands for the load `code[i]`.

    A write under a predicate leaves the old value where the predicate is false. What a register
    holds where the predicate is true is kept apart until the predicate changes.
    """

    def __init__(self) -> None:
        self.any: dict[str, int] = {}
        self.under: dict[tuple[str, str], int] = {}  # by (register, predicate)

    def copy(self) -> "Registers":
        other = Registers()
        other.any, other.under = dict(self.any), dict(self.under)
        return other

    def unite(self, other: "Registers") -> bool:
        """Adds what the other one may hold; returns whether that changed anything."""
        changed = False
        for key in [key for key in self.under if key not in other.under]:
            # `any` of this side is what the key says here, and more.
            del self.under[key]
            changed = True
        for mine, its in ((self.any, other.any), (self.under, other.under)):
            for key, loads in its.items():
                if mine is self.under and key not in mine:
                    continue
                if loads & ~mine.get(key, 0):
                    mine[key] = mine.get(key, 0) | loads
                    changed = True
        return changed

    def read(self, instruction: Instruction) -> int:
        loads = 0
        for register in instruction.sources:
            kept = self.any.get(register, 0)
            loads |= self.under.get((register, instruction.predicate), kept)
        return loads

    def write(self, instruction: Instruction, loads: int) -> None:
        predicate = instruction.predicate
        for register in instruction.result:
            for key in [key for key in self.under if key[0] == register]:
                if not predicate:
                    del self.under[key]
                elif key[1].lstrip("!") != predicate.lstrip("!"):
                    self.under[key] |= loads
            if predicate:
                self.any[register] = self.any.get(register, 0) | loads
                self.under[register, predicate] = loads
                # Written where the predicate is true and where it is not: nothing old is left.
                opposite = predicate[1:] if predicate[0] == "!" else f"!{predicate}"
                if (register, opposite) in self.under:
                    self.any[register] = loads | self.under[register, opposite]
            else:
                self.any[register] = loads
        changed = instruction.predicates_written
        if changed:
            for key in [key for key in self.under if key[1].lstrip("!") in changed]:
                del self.under[key]


def trace_loads(code: list[Instruction]) -> list[int]:
    """Follows every loaded value forward, on all paths, to everything that is computed from it.

    Returns, for every instruction, the loads from which its operands may come (bit i: `code[i]`).
    An address does not pass on to what is loaded from it, nor a spike word to the number of its
    bits.
    """
    following = successors(code)
    starts = {0} | {j for i, after in enumerate(following) if after != [i + 1] for j in after}
    reads = [0] * len(code)
    before = {0: Registers()}
    work = [0]
    while work:
        i = work.pop()
        registers = before[i].copy()
        while True:
            instruction = code[i]
            reads[i] = loads = registers.read(instruction)
            if LOAD.match(instruction.opcode):
                loads = 1 << i
            elif instruction.opcode == "POPC":
                loads = 0
            registers.write(instruction, loads)
            if following[i] != [i + 1] or i + 1 in starts:
                break
            i += 1
        for j in following[i]:
            if j not in before:
                before[j] = registers.copy()
                work.append(j)
            elif before[j].unite(registers):
                work.append(j)
    return reads


def data_loads(code: list[Instruction], reads: list[int], shared_is_data: bool = True) -> int:
    """The loads whose values are added as floating-point numbers or in 16-bit lanes, those of a
    kind that only weights have, and all of shared memory if it holds nothing but data."""
    always = r"LDS|" if shared_is_data else ""
    data = 0
    for i, instruction in enumerate(code):
        if re.match(r"FADD|VIADD\.16x2", instruction.opcode):
            data |= reads[i]
        if re.match(always + r"LDG\.E\.(NA|128|64|[US]8|U16)\b", instruction.opcode):
            data |= 1 << i
    return data


def find_multiplications(
    code: list[Instruction], shared_is_data: bool = True, scales_sums: bool = False
) -> list[str]:
    """Returns a line for every instruction that multiplies a number or works on added data.

    `scales_sums`: the sums are integers, and one that is finished may become a floating-point
    number and be multiplied (FMUL). Such a product cannot enter a sum as long as no floating-point
    number becomes an integer.
    """
    multiplies = [(i, instruction) for i, instruction in enumerate(code) if instruction.multiplies]
    if scales_sums:
        back = [str(each) for each in code if re.match(r"F2IP?\b", each.opcode)]
        if back:
            return back
        multiplies = [(i, each) for i, each in multiplies if not re.match(r"FMUL\b", each.opcode)]
    found = [
        f"{instruction}: not an address computation"
        for _, instruction in multiplies
        if not re.match(r"U?(IMAD|IMUL)", instruction.opcode)
    ]
    if found:
        return found
    reads = trace_loads(code)
    data = data_loads(code, reads, shared_is_data)
    return [f"{instruction}: reads data" for i, instruction in multiplies if reads[i] & data]
