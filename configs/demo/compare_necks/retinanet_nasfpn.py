# NAS-FPN's topology is made for five levels, so its anchors have two scales more.
_base_ = 'retinanet_fpn.py'

model = dict(
    neck=dict(
        _delete_=True,
        type='NASFPN',
        in_channels=[64, 128, 256],
        out_channels=64,
        num_outs=5,
        stack_times=2,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64, 128])),
)
