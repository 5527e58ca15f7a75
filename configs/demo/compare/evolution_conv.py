# The function is an argument: involution, token_mixing, ... here self-attention in windows.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                match=r'layer\d\.\d\.conv2',
                to=dict(
                    type='mmext.EvolutionConv2d',
                    function=dict(type='self_attention', heads=4),
                    kernel_size=7,
                    padding=3,
                ),
            )
        ],
    )
)
