"""Pickles of dictionaries of numpy arrays and lists, read without unpickling.

A pickle is a program for a machine with a stack. This machine has no instruction that imports,
calls or sets up anything: a name that the program gives stays a name, and of the few calls that
arrays need each is a function below that checks its arguments and makes an array of plain integers.
"""

import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from realspike.names import shown

# The batches of CIFAR-100 take 360,000; one instruction makes 100 bytes at most.
MOST_INSTRUCTIONS = 1_000_000
_DTYPES = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """What a program calls by a name; nothing is looked up by it but a function below."""

    text: str


@dataclass
class _DType:
    code: str
    order: str = "="

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """An array that has no contents before its state is set."""

    values: "np.ndarray | None" = None


def _expect(fits: bool, problem: str) -> None:
    if not fits:
        raise ValueError(problem)


def _reconstruct(kind, shape, code) -> _Array:
    _expect(kind == _Name("numpy ndarray") and shape == (0,) and code == b"b", "a strange array")
    return _Array()


def _dtype(code, align=False, copy=True) -> _DType:
    text = code.decode("latin1") if type(code) is bytes else code
    _expect(type(text) is str and text in _DTYPES, f"an array of {shown(text)}, not of integers")
    return _DType(text)


def _scalar(dtype, content) -> int:
    _expect(type(dtype) is _DType and type(content) is bytes, "a strange number")
    _expect(len(content) == dtype.numpy.itemsize, "a number of another size than its type")
    return int(np.frombuffer(content, dtype.numpy)[0])


def _encode(text, encoding) -> bytes:
    _expect(type(text) is str and encoding in ("latin1", b"latin1"), "a strange text")
    return text.encode("latin1")


_CALLS: "dict[_Name, Callable]" = {
    _Name("numpy dtype"): _dtype,
    _Name("_codecs encode"): _encode,
} | {
    _Name(f"numpy.{core}.multiarray {name}"): call
    for core in ("core", "_core")
    for name, call in (("_reconstruct", _reconstruct), ("scalar", _scalar))
}
_NAMES = {_Name("numpy ndarray"), *_CALLS}


def _name(text: str) -> _Name:
    name = _Name(text)
    _expect(name in _NAMES, f"it names {text[:80]!r}, which is never loaded")
    return name


def _set_state(target, state) -> None:
    _expect(type(state) is tuple, "a strange state")
    if type(target) is _DType:
        # Version, byte order, then what only structured, aligned and dated types have.
        _expect(len(state) == 8 and state[0] == 3 and state[2:5] == (None,) * 3, "a strange dtype")
        order = state[1].decode("latin1") if type(state[1]) is bytes else state[1]
        _expect(order in ("<", ">", "|", "="), "a strange byte order")
        target.order = "=" if order == "|" else order
        return
    _expect(type(target) is _Array and len(state) == 5 and state[0] == 1, "a strange state")
    _, shape, dtype, fortran, content = state
    sizes = type(shape) is tuple and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    _expect(sizes and len(shape) <= 4, "an array of a strange shape")
    _expect(type(dtype) is _DType and type(content) is bytes, "an array of no bytes")
    needed = math.prod(shape) * dtype.numpy.itemsize
    _expect(len(content) == needed, f"an array of {len(content)} bytes that needs {needed}")
    order = "F" if fortran else "C"
    target.values = np.frombuffer(content, dtype.numpy).reshape(shape, order=order)


class _Machine:
    def __init__(self, content: bytes):
        self.stack: list = []
        self.memo: dict = {}
        self.room = len(content)  # bytes that calls may make: no more than the pickle has

    def after_mark(self) -> list:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise ValueError("a mark is missing")

    def call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        _expect(type(name) is _Name and name in _CALLS and type(arguments) is tuple, "a call")
        made = _CALLS[name](*arguments)
        self.room -= len(made) if type(made) is bytes else 0
        _expect(self.room >= 0, "more bytes than the pickle has")
        self.stack.append(made)

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        _expect(type(target) is dict and len(items) % 2 == 0, "items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _expect(type(key) in (bytes, str), "a key that is no text")
            target[key] = value

    def append(self, items: list) -> None:
        _expect(type(self.stack[-1]) is list, "items of no list")
        self.stack[-1].extend(items)

    def run(self, name: str, argument) -> None:
        stack = self.stack
        match name:
            case "BININT1" | "BININT2" | "BININT" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "LONG1":
                _expect(abs(argument) < 2**64, "a number of more than 64 bits")
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # texts of Python 2, which are bytes
                stack.append(argument.encode("latin1"))
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(self.after_mark()))
            case "APPEND":
                self.append([stack.pop()])
            case "APPENDS":
                self.append(self.after_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.after_mark())
            case "GLOBAL":
                stack.append(_name(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                _expect(type(name) is str and type(module) is str, "a name that is no text")
                stack.append(_name(f"{module} {name}"))
            case "REDUCE":
                self.call()
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"it has the instruction {name}, which arrays do not need")


def loads(content: bytes) -> dict:
    """Return the dictionary in a pickle: its lists, numbers and bytes, and arrays of integers.

    Texts of Python 2 are bytes, keys too. Arrays are read-only views of ``content``'s parts.

    Raises:
        ValueError: if the pickle is truncated or corrupt, or holds anything else.
    """
    machine = _Machine(content)
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(content)):
            _expect(count < MOST_INSTRUCTIONS, f"it has more than {MOST_INSTRUCTIONS} instructions")
            machine.run(instruction.name, argument)
        (result,) = machine.stack
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
        raise ValueError(f"it is no pickle of arrays ({type(error).__name__}: {error})") from error
    _expect(type(result) is dict, "it is no pickle of a dictionary")
    return {k: v.values if type(v) is _Array else v for k, v in result.items()}
