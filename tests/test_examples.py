"""The examples of docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from registered import COMPONENTS
from torch import nn

import mmext
from mmext.inr.grid import coordinate_grid

FINDER = doctest.DocTestFinder(exclude_empty=True)
MODULES = [m.name for m in pkgutil.walk_packages(mmext.__path__, 'mmext.') if not m.name.endswith('_C')]
TESTS = {
    test.name: test
    for name in MODULES
    for test in FINDER.find(importlib.import_module(name))
    if test.examples and test.globs.get('__name__') == name
}


@pytest.mark.parametrize('name', sorted(COMPONENTS))
def test_component_has_an_example(name):
    assert '>>> ' in (COMPONENTS[name].__doc__ or ''), f'{name}: show it at work in two or three lines'


@pytest.mark.parametrize('name', sorted(TESTS))
def test_example_runs(name):
    test = TESTS[name]
    init_default_scope('mmengine')
    shown = {**vars(importlib.import_module(test.globs['__name__'])), 'torch': torch, 'nn': nn}
    test.globs = {**shown, 'coordinate_grid': coordinate_grid, 'mmext': mmext}
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append, clear_globs=False)
    assert not runner.failures, ''.join(said)


@pytest.mark.parametrize('name', sorted(n for n, test in TESTS.items() if "dict(type='mmext." in test.docstring))
def test_names_in_examples_exist(name):
    for example in TESTS[name].examples:
        for part in example.source.split("type='mmext.")[1:]:
            assert part.partition("'")[0] in {*COMPONENTS, *MODELS.module_dict}
