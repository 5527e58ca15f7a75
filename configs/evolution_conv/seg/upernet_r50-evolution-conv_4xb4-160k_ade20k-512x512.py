_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[
            dict(
                match=r'layer\d\.\d+\.conv2',
                to=dict(
                    type='mmext.EvolutionConv2d',
                    function=dict(type='self_attention', heads=8),
                    kernel_size=7,
                    padding=3,
                ),
            )
        ],
    ),
)
