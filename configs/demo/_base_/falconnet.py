# The refocused FalconNet of stage 2, with LENI in the place of ReLU behind its later spatial operators.
falconnet = dict(
    type='mmext.swap_layers',
    model=dict(
        type='mmext.FalconNet',
        arch=dict(depths=(2, 3, 3), channels=(32, 64, 128)),
        block=dict(type='mmext.MetaLightBlock', expansion=3, spatial=dict(type='Conv2d'), channel=dict(type='Conv2d')),
        conv_cfg=dict(type='mmext.RefConv2d'),
        out_indices=(0, 1, 2),
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/demo/refocus/epoch_5.pth', prefix='backbone.'),
    ),
    rules=[dict(layer='ReLU', match=r'stages\.[12].*so2', to=dict(type='mmext.LENI'))],
)
