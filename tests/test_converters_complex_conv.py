"""Complex convolution: the file of a framework that does not tell which way its kernels lie."""

import pytest
import torch
from official_layers.complex_conv import KerasOfficial

from mmext.converters import convert
from mmext.errors import UsageError


def test_keras_files_need_their_backend():
    """Taken for the other one's, a kernel is turned over, and nothing else tells."""
    state = KerasOfficial(theano=True).state_dict()
    with pytest.raises(UsageError, match=r'--options backend= needs one of theano, tensorflow, got none'):
        convert('complex_conv', state)
    theano, tensorflow = (convert('complex_conv', state, {'backend': b}).state for b in ('theano', 'tensorflow'))
    for part in ('real', 'imag'):
        assert torch.equal(theano[part], tensorflow[part].flip(2, 3))
