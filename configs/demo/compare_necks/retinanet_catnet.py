_base_ = 'retinanet_fpn.py'

model = dict(
    neck=[
        dict(
            type='mmext.DenseFPN',
            in_channels=[64, 128, 256],
            out_channels=64,
            num_outs=3,
            stack_times=2,
            norm_cfg=dict(type='BN'),
        ),
        dict(type='mmext.SCP', in_channels=64, num_outs=3),
    ]
)
