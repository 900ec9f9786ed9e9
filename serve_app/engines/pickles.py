"""Follows a checkpoint's pickle without running it, and refuses calls that no checkpoint makes.

torch's restricted unpickler allows classes; to call a class with arguments is then allowed too, and
`nn.Linear(10**5, 10**5)` in a few bytes takes all memory. What `torch.save` writes never does that:
it makes modules empty and fills in their state, and calls a handful of functions.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from typing import Any, Final

from serve_app.engines.text import printable
from serve_app.errors import ModelBrokenError

_CALLS = {
    "_codecs.encode",
    "builtins.getattr",  # Ultralytics puts a safe one in its place
    "builtins.set",
    "collections.OrderedDict",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "torchvision.transforms.functional.InterpolationMode",
    "ultralytics.utils.IterableSimpleNamespace",
    "ultralytics.yolo.utils.IterableSimpleNamespace",
}
# A scalar without its data would be zeros, of whatever size its dtype says.
_CALLS_OF_TWO = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
# Their states make them loop over a number of layers that they name.
_NEVER_MADE = ("torch.nn.modules.rnn.", "torch.nn.modules.lazy.")

_MAX_TUPLE = 10_000  # values, those of the tuples in it included: hashing it visits each of them

_OPAQUE: Final = object()  # a value of which nothing need be known
_LITERALS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINSTRING"),
}
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DROPPED = {"APPEND": 1, "SETITEM": 2, "BUILD": 1, "PROTO": 0, "STOP": 0}


class _Global(str):
    """A dotted name that the pickle imports."""


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how much it unfolds to."""

    size: int


def check_calls(data: bytes) -> None:
    """Check that the pickle makes and calls only what checkpoints do.

    It knows the opcodes that torch's restricted unpickler runs, and what that would do with them.

    Raises:
        ModelBrokenError: it calls something else, which the detail names, or is malformed
    """
    walk = _Walk()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            walk.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError):
        raise ModelBrokenError(
            "the checkpoint's structure is corrupt, or nothing that PyTorch wrote; copy it again"
        ) from None


class _Walk:
    """The unpickler's stack and memo, with names in the place of what they name."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Do what the unpickler would; raise ValueError for an opcode that it does not know."""
        stack = self._stack
        if opcode in _LITERALS or opcode in _CONTAINERS:
            stack.append(_OPAQUE)
        elif opcode == "GLOBAL":
            stack.append(_Global(_modern_name(argument)))
        elif opcode in {"BINGET", "LONG_BINGET"}:
            stack.append(self._memo[argument])
        elif opcode in {"BINPUT", "LONG_BINPUT"}:
            self._memo[argument] = stack[-1]
        elif opcode in {"NEWOBJ", "REDUCE"}:
            arguments, called = stack.pop(), stack.pop()
            (_check_made if opcode == "NEWOBJ" else _check_called)(called, arguments)
            stack.append(_OPAQUE)
        elif opcode == "BINPERSID":
            stack[-1] = _OPAQUE
        else:
            self._arrange(opcode)

    def _arrange(self, opcode: str) -> None:
        """Do what only moves values about."""
        if opcode == "MARK":
            self._outer.append(self._stack)
            self._stack = []
        elif opcode in {"TUPLE", "APPENDS", "SETITEMS"}:
            items, self._stack = self._stack, self._outer.pop()
            if opcode == "TUPLE":
                self._stack.append(_pack(items))
        elif opcode == "EMPTY_TUPLE":
            self._stack.append(_pack([]))
        elif opcode in _TUPLES:
            items = [self._stack.pop() for _ in range(_TUPLES[opcode])]
            self._stack.append(_pack(items[::-1]))
        else:
            for _ in range(_DROPPED[opcode]):
                self._stack.pop()


def _pack(items: list[Any]) -> _Tuple:
    packed = _Tuple(items)
    packed.size = 1 + sum(item.size if isinstance(item, _Tuple) else 1 for item in items)
    if packed.size > _MAX_TUPLE:
        raise ValueError("a tuple of tuples without end")
    return packed


def _check_made(made: Any, arguments: Any) -> None:
    if arguments != () or not isinstance(made, _Global) or made.startswith(_NEVER_MADE):
        raise _refusal(made)


def _check_called(called: Any, arguments: Any) -> None:
    fits = isinstance(called, _Global) and isinstance(arguments, tuple)
    if not fits or not (called in _CALLS or (called in _CALLS_OF_TWO and len(arguments) == 2)):
        raise _refusal(called)


def _refusal(called: Any) -> ModelBrokenError:
    name = printable(called) if isinstance(called, _Global) else "what it loaded"
    return ModelBrokenError(
        f"the checkpoint calls {name}, which no YOLO checkpoint does; nothing of it was run"
    )


def imported_names(data: bytes) -> Iterator[str]:
    """Yield the dotted names that a pickle imports; raise ValueError when it is malformed."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":
            # Memoised strings are not followed: torch.save never writes this opcode, and whatever
            # is read here, the restricted unpickler refuses it.
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _modern_name(argument: str) -> str:
    """Return the dotted name as Python 3 knows it, as torch's unpickler translates it."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    elif module in IMPORT_MAPPING:
        module = IMPORT_MAPPING[module]
    return f"{module}.{name}"
