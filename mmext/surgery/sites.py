"""Call sites: the places in the code of a host where it calls one layer, each with a layer of its own.

A host makes one ReLU and calls it three times in a block's forward. A layer with parameters needs three instances there.
Which one serves a call must not depend on anything that a forward leaves behind, because several threads may run one model,
and checkpointing runs parts of a forward again. So the methods of the block are compiled anew, with ``self.relu[0]``,
``self.relu[1]``, ... where their source says ``self.relu``, in a class that derives from the block's own.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

__all__ = ['CallSites', 'count_sites', 'host_class', 'with_sites']


class CallSites(nn.ModuleList):
    """The layers of the call sites of one place of a model, in the order of the source; see :func:`with_sites`."""

    def forward(self, *_: Any) -> Any:
        """Refuse a call from a place that the source does not show.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            f'{len(self)} layers stand at the call sites of this place ({type(self[0]).__name__}, ...), and a call came '
            'that is none of them; leave the layer out of the swap by skip=...'
        )


def host_class(module: nn.Module) -> type:
    """Return the class of a module as its host wrote it, without the call sites."""
    cls = type(module)
    return cls.__mro__[1] if 'sited' in vars(cls) else cls


def count_sites(cls: type, attribute: str) -> int:
    """Return how many times the methods of ``cls`` read ``self.<attribute>``, as far as their source can be read."""
    return _rewrite(cls, (attribute,))[1][attribute]


@functools.cache
def with_sites(cls: type, attributes: tuple[str, ...]) -> type:
    """Return a class derived from ``cls`` that reads ``self.<attribute>[i]`` at the i-th place where ``cls`` reads it.

    It has the name of ``cls``, and its ``sited`` tells the attributes. Its instances can be copied and pickled. A method
    stays as it is if its source cannot be read, or is not what runs.
    """
    methods, _ = _rewrite(cls, attributes)
    host: Any = cls

    def reduce(self: Any, protocol: Any) -> tuple:
        made, arguments, *state = host.__reduce_ex__(self, max(int(protocol), 2))
        if type(self) is derived:  # not a class that something else has derived from this one
            made, arguments = _revive, (cls, attributes)
        return (made, arguments, *state)

    described = dict(sited=attributes, __module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__)
    derived: type = type(cls)(cls.__name__, (cls,), {**described, **methods, '__reduce_ex__': reduce})
    return derived


def _revive(cls: type, attributes: tuple[str, ...]) -> Any:
    derived = with_sites(cls, attributes)
    return derived.__new__(derived)  # type: ignore[call-overload]


def _rewrite(cls: type, attributes: tuple[str, ...]) -> tuple[dict[str, FunctionType], dict[str, int]]:
    """Return the methods of ``cls`` that read one of ``attributes``, compiled anew, and how many times each is read."""
    subscribe, methods, sought = _Subscribe(attributes), {}, set(attributes)
    for name, method in _methods(cls).items():
        if not any(sought & set(code.co_names) for code in (method.__code__, *_all_code(method.__code__))):
            continue
        before = sum(subscribe.counts.values())
        tree, node = _source(method)
        if node is None or not _same(_code_in(tree, method), method.__code__):
            continue
        subscribe.own = method.__code__.co_varnames[0]
        subscribe.visit(node)
        if sum(subscribe.counts.values()) > before:
            methods[name] = _with_code(method, _code_in(tree, method))
    return methods, subscribe.counts


def _methods(cls: type) -> dict[str, FunctionType]:
    """Return the methods that run; a constructor calls no layer, and what torch defines reads no layer of a host."""
    found: dict[str, FunctionType] = {}
    for owner in cls.__mro__:
        if owner is nn.Module:
            break
        for name, member in vars(owner).items():
            if isinstance(member, FunctionType) and member.__code__.co_argcount and not name.startswith('__'):
                found.setdefault(name, member)
    return found


class _Subscribe(ast.NodeTransformer):
    """Turn ``self.name`` into ``self.name[i]``, i counting the places."""

    def __init__(self, attributes: tuple[str, ...]) -> None:
        self.counts = dict.fromkeys(attributes, 0)
        self.own = ''

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        own = isinstance(node.value, ast.Name) and node.value.id == self.own
        if not own or node.attr not in self.counts or not isinstance(node.ctx, ast.Load):
            return node
        index = ast.Constant(self.counts[node.attr])
        self.counts[node.attr] += 1
        return ast.copy_location(ast.Subscript(node, index, ast.Load()), node)


def _source(method: FunctionType) -> tuple[ast.Module, ast.FunctionDef | None]:
    """Return the whole file, since what it imports changes how a method is compiled, and the method's place in it."""
    try:
        tree = ast.parse(''.join(inspect.findsource(method)[0]))
    except (OSError, SyntaxError, TypeError):
        return ast.Module([], []), None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == method.__code__.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == method.__code__.co_firstlineno:
                return tree, node
    return tree, None


def _code_in(tree: ast.Module, method: FunctionType) -> CodeType:
    compiled = compile(ast.fix_missing_locations(tree), method.__code__.co_filename, 'exec', dont_inherit=True)
    at = (method.__code__.co_name, method.__code__.co_firstlineno)
    return next((code for code in _all_code(compiled) if (code.co_name, code.co_firstlineno) == at), compiled)


def _all_code(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _all_code(constant)


def _same(source: CodeType, running: CodeType) -> bool:
    """Tell whether the source is what runs: a file may have changed since it was imported."""
    inner = [[c for c in code.co_consts if isinstance(c, CodeType)] for code in (source, running)]
    alike = all(
        getattr(source, k) == getattr(running, k) for k in ('co_code', 'co_names', 'co_varnames', 'co_freevars')
    )
    return alike and len(inner[0]) == len(inner[1]) and all(map(_same, *inner))


def _with_code(method: FunctionType, code: CodeType) -> FunctionType:
    cells = dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(code, method.__globals__, method.__name__, method.__defaults__, closure)
    made.__kwdefaults__, made.__annotations__ = method.__kwdefaults__, method.__annotations__
    functools.update_wrapper(made, method)
    return made
