# Stage 3: a detector on the refocused FalconNet, LENI in the place of ReLU behind its spatial operators, SEPC as neck.
_base_ = ['../_base_/retinanet.py', '../_base_/scenes_det.py']

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model=dict(
            type='mmext.FalconNet',
            arch=dict(depths=(2, 3, 3), channels=(32, 64, 128)),
            block=dict(
                type='mmext.MetaLightBlock', expansion=3, spatial=dict(type='Conv2d'), channel=dict(type='Conv2d')
            ),
            conv_cfg=dict(type='mmext.RefConv2d'),
            out_indices=(1, 2),
            init_cfg=dict(type='Pretrained', checkpoint='work_dirs/demo/refocus/epoch_5.pth', prefix='backbone.'),
        ),
        rules=[dict(layer='ReLU', match=r'stages\.[12].*so2', to=dict(type='mmext.LENI'))],
    ),
    neck=[
        dict(type='FPN', in_channels=[64, 128], out_channels=64, num_outs=3, add_extra_convs='on_output'),
        dict(type='mmext.SEPC', in_channels=64, out_channels=64, num_outs=3, num_pconvs=2, ibn=True),
    ],
    bbox_head=dict(type='mmext.PairHead', head='RetinaHead'),
)
